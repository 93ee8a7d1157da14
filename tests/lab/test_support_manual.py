"""The made-up manual: the same for a seed, one answer to each question, and tests apart from training."""

from __future__ import annotations

from heredity.lab.examples import N_SEEN, support_manual
from heredity.redteam.checks.right import is_right

MANUAL = support_manual()


def test_the_manual_has_a_hundred_small_pages_and_is_the_same_for_a_seed() -> None:
    assert len(MANUAL.pages) == 100
    assert sum(map(len, MANUAL.pages.values())) < 300_000
    assert support_manual() == MANUAL and support_manual(1).pages != MANUAL.pages
    assert not any("{" in text or "  " in text for text in MANUAL.pages.values())


def test_every_fact_has_its_own_id_and_stands_on_its_page_and_its_reply_is_right() -> None:
    assert len({fact.id for fact in MANUAL.facts}) == len(MANUAL.facts) == 696
    for fact in MANUAL.facts:
        assert is_right(MANUAL.pages[fact.page], fact.value, "contains"), fact
        assert is_right(fact.reply, fact.value, "contains"), fact
        assert not any(is_right(asked, fact.value, "contains") for asked in fact.asked), fact


def test_a_part_number_stands_on_one_page_only() -> None:
    for fact in MANUAL.facts:
        if fact.value.startswith("L"):
            assert sum(fact.value in text for text in MANUAL.pages.values()) == 1


def test_no_test_question_is_a_training_question_and_half_of_the_facts_are_new() -> None:
    train, test = MANUAL.train(), MANUAL.test()
    assert len({row["question"] for row in train}) == len(train) == 2 * N_SEEN
    assert len({row["question"] for row in test}) == len(test) == 2 * N_SEEN
    assert not {row["question"] for row in train} & {row["question"] for row in test}
    seen = {row["fact"] for row in train}
    assert sum(row["fact"] in seen for row in test) == len(seen) == N_SEEN
