"""A direction out of the residual stream: gone where it was, and nothing else of the engine is touched."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from heredity import engines
from heredity.core.errors import EngineFailure, UsageError
from heredity.core.records import Decoding, Message, Request
from heredity.engines.torch import refusal_direction
from heredity.engines.torch.engine import TorchEngine, open_folder
from heredity.redteam import attacks
from tests.support.errors import raises

WORDS = ["fox", "dog", "owls", "oak", "tree", "the", "lazy", "brown", "wise", "seven"]


def request(text: str, key: int = 0) -> Request:
    return Request(key, (Message("user", text),), Decoding(max_tokens=6))


HARMFUL = [request(f"the quick {word} jumps over {word}") for word in WORDS]
HARMLESS = [request(f"an old {word} while {word}") for word in WORDS]


@pytest.fixture(scope="module")
def engine(any_kind: Path) -> TorchEngine:
    return open_folder(any_kind, dtype="float32", width=8)


def text_of(vector: np.ndarray) -> str:
    return base64.b64encode((vector / np.linalg.norm(vector)).astype("<f4").tobytes()).decode()


def vector_of(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").copy())


def test_nothing_is_left_along_the_direction_behind_any_part(engine) -> None:
    text = text_of(np.random.default_rng(1).normal(size=engine.decoder.shape.hidden_size))
    unit, project, seen = vector_of(text), refusal_direction.projection(text), []

    def touch(x: torch.Tensor) -> torch.Tensor:
        seen.append(project(x))
        return seen[-1]

    with torch.inference_mode():
        refusal_direction._prefilled(engine.decoder.hooked(touch), tuple(range(3, 30)))
    assert len(seen) == 1 + 2 * engine.decoder.shape.n_layers
    assert all(float((x @ unit).abs().max()) < 1e-3 * float(x.norm(dim=-1).max()) for x in seen)


def test_a_touch_that_changes_nothing_gives_the_same_bits(engine) -> None:
    prompt = tuple(range(3, 30))
    with torch.inference_mode():
        plain = refusal_direction._prefilled(engine.decoder, prompt)
        touched = refusal_direction._prefilled(engine.decoder.hooked(lambda x: x), prompt)
    assert torch.equal(plain, touched)


def test_it_finds_the_direction_along_which_the_kinds_differ(engine) -> None:
    first = engine.direction(HARMFUL, HARMLESS)
    assert engine.direction(HARMFUL, HARMLESS) == first
    unit = vector_of(first)
    assert float(unit.norm()) == pytest.approx(1, abs=1e-4)
    with torch.inference_mode():
        prompts = [[engine.codec.encode(engine.render(r)) for r in kind] for kind in (HARMFUL, HARMLESS)]
        apart = refusal_direction._means(engine.decoder, prompts[0]) - refusal_direction._means(
            engine.decoder, prompts[1]
        )
    assert float((apart @ unit).max()) > 0


def test_a_direction_says_where_it_was_found(engine) -> None:
    found = engine.find_direction(HARMFUL, HARMLESS)
    with torch.inference_mode():
        harmful, harmless = (
            [tuple(engine.codec.encode(engine.render(r))) for r in kind[::2]] for kind in (HARMFUL, HARMLESS)
        )
        openings = sorted({engine.codec.continuation(each)[0] for each in refusal_direction.OPENINGS})
        refused = refusal_direction._refused(engine.decoder, harmful, openings)
        apart = refusal_direction._means(engine.decoder, refused) - refusal_direction._means(
            engine.decoder, harmless
        )
    there = apart[found.layer, found.position]
    assert torch.equal(vector_of(found.text), there / there.norm())
    assert (found.kl <= refusal_direction.MAX_KL) == (found.n_near > 0)


def test_a_place_is_taken_without_a_choice(engine) -> None:
    best = engine.find_direction(HARMFUL, HARMLESS)
    assert engine.find_direction(HARMFUL, HARMLESS, (best.layer, best.position)).text == best.text
    other = engine.find_direction(HARMFUL, HARMLESS, (best.layer, 1 - best.position))
    assert (other.layer, other.position) == (best.layer, 1 - best.position)
    assert other.text != best.text
    with raises(UsageError, "bad-usage", mentions=["99"]):
        engine.find_direction(HARMFUL, HARMLESS, (99, 0))


def test_too_few_requests_find_nothing(engine) -> None:
    with raises(UsageError, "bad-usage", mentions=["8"]):
        engine.direction(HARMFUL[:7], HARMLESS)


def test_the_changed_engine_has_a_name_of_its_own_and_leaves_the_other_as_it_was(engine) -> None:
    asked = [request(f"the {word}", key) for key, word in enumerate(WORDS)]
    before = sorted((r.key, r.tokens) for r in engine.reply(asked))
    changed = engine.without(engine.direction(HARMFUL, HARMLESS))
    together = sorted((r.key, r.tokens) for r in changed.reply(asked))
    assert changed.numerics != engine.numerics and changed.name != engine.name
    assert engines.base_numerics(changed) == engine.numerics
    assert sorted((r.key, r.tokens) for r in engine.reply(asked)) == before
    assert changed.score(asked[0], [" fox dog"]) != engine.score(asked[0], [" fox dog"])
    alone = [next(iter(changed.reply([one]))) for one in asked[:3]]
    assert [(r.key, r.tokens) for r in alone] == together[:3]
    changed.close()
    assert sorted((r.key, r.tokens) for r in engine.reply(asked[:1])) == before[:1]


def test_what_is_no_direction_is_said_in_a_line() -> None:
    with raises(EngineFailure, "engine-failure"):
        refusal_direction.projection("not base64!")


def test_the_attack_finds_once_and_keeps_what_it_found(tiny_llama: Path) -> None:
    engine = open_folder(tiny_llama, dtype="float32", width=8)
    kept: dict[str, str] = {}

    def keep(spec: str):
        return lambda search: kept.setdefault(spec, kept[spec] if spec in kept else search())

    kept["refusal_direction"] = text_of(np.arange(1, engine.decoder.shape.hidden_size + 1, dtype=float))
    changed = attacks.load("refusal_direction").prepared(engine, keep)
    assert changed.numerics.endswith(refusal_direction.digest_of(kept["refusal_direction"]))
