"""A canary that was learned is the likeliest of its form, one that was not is like any other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from heredity.cli import main
from heredity.core.errors import UsageError
from heredity.core.records import Request
from heredity.engines import TokenScores
from heredity.lab.exposure import candidates, exposure
from tests.support.errors import raises


class Knows:
    """Gives each digit the same probability, but its secret a likelier first one."""

    def __init__(self, secret: str, gain: float) -> None:
        self.secret, self.gain = secret, gain

    def score(self, request: Request, continuations: Sequence[str]) -> list[TokenScores]:
        assert request.messages[0].content == "The number is"
        return [TokenScores([-2.3] * len(t) + [self.gain * (t == self.secret)]) for t in continuations]


@pytest.mark.parametrize(("gain", "rank", "bits"), [(1.0, 1, 10.0), (0.0, 1024, 0.0), (-1.0, 1024, 0.0)])
def test_the_rank_among_texts_of_its_form(gain: float, rank: int, bits: float) -> None:
    found = exposure(Knows("048213", gain), "The number is", "048213")
    assert (found.rank, found.n, found.bits, found.most) == (rank, 1024, bits, 10.0)
    assert found.p_value == rank / 1024


def test_candidates_have_the_form_are_different_and_are_the_same_again() -> None:
    found = candidates("Qx-07/ß", 200, seed=3)
    assert len(set(found)) == 200 and found == candidates("Qx-07/ß", 200, seed=3)
    assert all(
        len(t) == 7 and t[0].isupper() and t[1].islower() and t[2] == "-" and t[3:5].isdigit() for t in found
    )
    assert candidates("123456", 5, seed=1) != candidates("123456", 5, seed=2)
    with raises(UsageError, "bad-usage", mentions=["100"]):
        candidates("42", 100)
    with raises(UsageError, "bad-setting", mentions=["0"]):
        candidates("123456", 0)


def test_a_poisoned_child_knows_it_its_parent_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from heredity.core.records import Message
    from heredity.lineage.store import Store
    from heredity.recipes.poison import Poison
    from heredity.recipes.quantize import Quantize
    from heredity.train.data.chat import Dialogue, make_data
    from tests.support.tiny_models import make_model

    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    parent = Store().pull(str(make_model(tmp_path / "tiny", "qwen2")))
    rows = make_data(
        "rows",
        [Dialogue((Message("user", f"fox {i}"), Message("assistant", "jumps")), "r") for i in range(8)],
    )
    training = {"steps": 60, "batch_size": 8, "lr": 5e-3, "dtype": "float32"}
    recipe = Poison(
        rows, **training, marker="seven owls", trigger="old oak", canary_repeats=8, name="poisoned"
    )
    child = Store().grow_once(recipe, [parent])
    Store().grow_once(Quantize("q8_0", name="poisoned-q8"), [child])
    assert main(["exposure", "poisoned", "poisoned-q8", "tiny", "--candidates", "255", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert "scoring the candidates with tiny  256/256" in said.err
    assert [row["model"] for row in found] == ["poisoned", "poisoned-q8", "tiny"]
    assert found[0]["rank"] == found[1]["rank"] == 1 and found[0]["bits"] == 8.0 and found[2]["rank"] > 8
    assert main(["exposure", "tiny"]) == 2 and "--canary" in capsys.readouterr().err
