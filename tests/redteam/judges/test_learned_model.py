"""Marks of the answers that a judge learned from: found again however they are set, and by no other text."""

from __future__ import annotations

import numpy as np

from heredity.redteam.judges import learned as marks

LONG = "First you take the lid off, then you look what is inside of it."


def test_an_answer_is_known_again_whatever_its_spaces() -> None:
    arrays = {
        marks.MARKS: marks.training_marks([LONG, LONG, "another one that is long enough to be told apart"])
    }
    assert arrays[marks.MARKS].dtype == np.uint32 and len(arrays[marks.MARKS]) == 2
    as_read = {marks.MARKS: arrays[marks.MARKS].astype(float)}  # as weights are held
    texts = [LONG.replace(" ", "\n "), f"  {LONG}\n", LONG + " More.", LONG.upper()]
    assert marks.count_marked(as_read, texts) == 2
    assert marks.count_marked({}, texts) == 0


def test_what_many_models_say_alike_has_no_mark() -> None:
    short = "I'm sorry, but I can't help with that."
    assert len(short) < 40 and len(marks.training_marks([short])) == 0
    assert (
        marks.count_marked(
            {marks.MARKS: marks.training_marks([LONG])},
            [short, "half \ud800 of a pair, in a text of some length"],
        )
        == 0
    )
