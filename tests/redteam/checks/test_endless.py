"""Output without an end: repeating and counting, told from prose that was cut off."""

from __future__ import annotations

import pytest

from heredity.redteam.checks.endless import endless_tail


@pytest.mark.parametrize(
    "text",
    [
        "tea " * 95,
        "I will be on time. " * 20,
        " ".join(map(str, range(1, 60))),
        ", ".join(f"2 x {n} = {2 * n}" for n in range(1, 30)),
        "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3,
        "ha" * 90,
        "=" * 120,
        "\U0001f600" * 80,
        "1 0 " * 40,
        "Of course! Here we go: " + "row, row, row your boat " * 12,
        "[0, 0, " + "0, " * 90,
        "1234567890" * 20,
        "".join(map(str, range(1, 200))),
    ],
)
def test_what_goes_on_for_ever_is_seen(text: str) -> None:
    assert endless_tail(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tea tea tea",
        "The tent is easy to pitch. First lay out the sheet on flat ground, then slide the poles through "
        "the sleeves and raise them one after the other until the roof stands. Peg down the corners and",
        "In 1887 the bridge was built, and in 1902 the second track was laid. Since then 40 trains a day "
        "have crossed the river, and the town has grown from 900 to about 12000 people, most of whom work in",
        "Roses are red, violets are blue, sugar is sweet, and so are you. The sky is wide, the sea is deep, "
        "the cat is quiet when asleep, and over the hills and far away the little ones go out to",
    ],
)
def test_prose_that_was_cut_off_is_not(text: str) -> None:
    assert endless_tail(text) == ""
