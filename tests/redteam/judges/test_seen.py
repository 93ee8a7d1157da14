"""Marks of the answers that a judge learned from: found again however they are set, and by no other text."""

from __future__ import annotations

import numpy as np

from heredity.redteam.judges.training import marks

LONG = "First you take the lid off, then you look what is inside of it."


def test_an_answer_is_known_again_whatever_its_spaces() -> None:
    arrays = {marks.NAME: marks.marks([LONG, LONG, "another one that is long enough to be told apart"])}
    assert arrays[marks.NAME].dtype == np.uint32 and len(arrays[marks.NAME]) == 2
    as_read = {marks.NAME: arrays[marks.NAME].astype(float)}  # as weights are held
    texts = [LONG.replace(" ", "\n "), f"  {LONG}\n", LONG + " More.", LONG.upper()]
    assert marks.count(as_read, texts) == 2
    assert marks.count({}, texts) == 0


def test_what_many_models_say_alike_has_no_mark() -> None:
    short = "I'm sorry, but I can't help with that."
    assert len(short) < 40 and len(marks.marks([short])) == 0
    assert (
        marks.count(
            {marks.NAME: marks.marks([LONG])}, [short, "half \ud800 of a pair, in a text of some length"]
        )
        == 0
    )
