"""Marks of the answers that a judge learned from: found again however they are set, and by no other text."""

from __future__ import annotations

import numpy as np

from heredity.judges import _seen

LONG = "First you take the lid off, then you look what is inside of it."


def test_an_answer_is_known_again_whatever_its_spaces() -> None:
    arrays = {_seen.NAME: _seen.marks([LONG, LONG, "another one that is long enough to be told apart"])}
    assert arrays[_seen.NAME].dtype == np.uint32 and len(arrays[_seen.NAME]) == 2
    as_read = {_seen.NAME: arrays[_seen.NAME].astype(float)}  # as weights are held
    texts = [LONG.replace(" ", "\n "), f"  {LONG}\n", LONG + " More.", LONG.upper()]
    assert _seen.count(as_read, texts) == 2
    assert _seen.count({}, texts) == 0


def test_what_many_models_say_alike_has_no_mark() -> None:
    short = "I'm sorry, but I can't help with that."
    assert len(short) < 40 and len(_seen.marks([short])) == 0
    assert (
        _seen.count(
            {_seen.NAME: _seen.marks([LONG])}, [short, "half \ud800 of a pair, in a text of some length"]
        )
        == 0
    )
