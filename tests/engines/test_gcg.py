"""Greedy coordinate gradient on a tiny random model: it beats chance and repeats itself."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.records import Message, Request
from heredity.engines.chat import ChatCodec
from heredity.engines.torch import gcg
from heredity.engines.torch.engine import TorchEngine, open_folder

TARGET = " the old oak"
MARK = "[[found]]"
REQUEST = Request(0, (Message("user", f"the quick brown fox{MARK}"),))


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> TorchEngine:
    return open_folder(tiny_llama, dtype="float32", width=4)


@pytest.fixture(scope="module")
def hunt(tiny_llama: Path) -> gcg._SuffixSearch:
    chat = ChatCodec(tiny_llama)
    tongue = gcg.TokenizerView(chat.encode, chat.continuation, chat.decode)
    before, _, after = chat.render(REQUEST).partition(MARK)
    start = tongue.encode(before)
    place = gcg.SuffixPlace(start, tongue.encode(before + after)[len(start) :], tongue.continuation(TARGET))
    with torch.no_grad():
        return gcg._SuffixSearch(gcg.load(tiny_llama), tongue, place, before, after, 5)


def start(hunt: gcg._SuffixSearch) -> list[int]:
    return list(hunt._tokenizer.continuation(" !")) * 8


def test_the_loss_is_that_of_the_whole_prompt_without_a_cache(hunt) -> None:
    tokens = start(hunt)
    whole = [*hunt._place.before, *tokens, *hunt._place.after, *hunt._place.target]
    with torch.no_grad():
        logits = hunt._model(torch.tensor([whole])).logits[0]
        n = len(hunt._place.target)
        expected = torch.nn.functional.cross_entropy(logits[-n - 1 : -1], torch.tensor(hunt._place.target))
        assert float(hunt._losses([tokens])[0]) == pytest.approx(float(expected), abs=1e-4)
        many = hunt._losses([tokens] * 3)
    assert many.tolist() == pytest.approx([float(expected)] * 3, abs=1e-4)


def test_the_gradient_points_to_better_tokens_than_chance(hunt) -> None:
    """As many forward passes, drawn from the gradient and drawn blindly."""
    tokens, steps = start(hunt), 6
    with torch.no_grad():
        found = hunt.run(tokens, steps)
        blind, best = list(tokens), found.loss_before
        draw = random.Random(3)
        allowed = [i for i, is_allowed in enumerate(hunt._allowed.tolist()) if is_allowed]
        for _ in range(steps):
            others = []
            while len(others) < gcg.CANDIDATES:
                one = list(blind)
                one[draw.randrange(len(one))] = draw.choice(allowed)
                others.append(one)
            losses = hunt._losses(others)
            if float(losses.min()) < best:
                best, blind = float(losses.min()), others[int(losses.argmin())]
    assert found.loss_after < found.loss_before
    assert found.loss_after < best


def test_the_same_seed_finds_the_same_and_what_it_finds_is_what_is_said(engine) -> None:
    first = engine.suffix(REQUEST, MARK, TARGET, 2, 9)
    assert engine.suffix(REQUEST, MARK, TARGET, 2, 9) == first
    found = json.loads(first)
    assert found["loss_after"] <= found["loss_before"] and found["n_steps"] == 2
    assert found["text"].isascii() and found["text"].isprintable()


def test_a_search_inside_an_answering_engine_works_as_outside_of_it(engine) -> None:
    """A study searches while the engine is in the midst of its stream."""
    found = []

    def stream():
        found.append(engine.suffix(REQUEST, MARK, TARGET, 1, 9))
        yield Request(0, (Message("user", "the lazy dog"),))

    assert len(list(engine.reply(stream()))) == 1
    assert found == [engine.suffix(REQUEST, MARK, TARGET, 1, 9)]
