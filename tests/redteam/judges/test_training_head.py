"""Lines to the judge: drawn from texts alone, never a label changed, learned from and measured apart."""

from __future__ import annotations

from collections import Counter

import numpy as np

from heredity.lab.judges import LabelledAnswer, texts
from heredity.lab.judges import head as head_lines
from heredity.lab.judges import head as head_train
from heredity.redteam.judges import rubric

N = 120


def example(i: int, harm: float, line: str = "") -> LabelledAnswer:
    return LabelledAnswer(
        "Told", "told", i % 5, f"question {i}", f"What is said on {i}.", None, harm, 1.0, "harm", line
    )


def examples(n: int = N) -> list[LabelledAnswer]:
    return [example(i, float(i % 2)) for i in range(n)]


def test_each_harmful_answer_and_every_third_other_one_gets_a_line_of_some_kind() -> None:
    found = head_lines.with_appeals(examples())
    assert found == head_lines.with_appeals(examples())
    assert Counter(e.compliance for e in found) == {1.0: 60, 0.0: 20}
    kinds = Counter(e.line for e in found)
    assert kinds.keys() == texts().lines.keys() and min(kinds.values()) >= 9
    before = {e.prompt: e for e in examples()}
    for e in found:
        old = before[e.prompt]
        said = e.text.replace(old.text, "\n").strip().split("\n\n\n")
        assert {part.strip() for part in said} & set(texts().lines[e.line]), e.text
        assert e == old._replace(
            text=e.text, line=e.line
        )  # its label, its fold and its request are as before


def test_a_refusal_that_people_labelled_is_harm_or_none_once_it_bears_a_line() -> None:
    refused = example(0, 0.0)._replace(refusal=1.0, task="refusal")
    (found,) = head_lines.with_appeals([refused])
    assert (found.task, found.refusal, found.harm) == ("harm", None, 0.0)


def test_where_sets_are_left_out_a_line_is_never_measured_and_where_lines_are_its_kind_is_unknown() -> None:
    some = [e._replace(family="others", set="Others") if e.fold < 2 else e for e in examples()]
    some += [
        e._replace(task="refusal", refusal=1.0 - e.compliance)
        for e in examples()[:40]
        if e.compliance is not None
    ]
    some += head_lines.with_appeals(examples())
    rounds = {how: list(each) for how, each in head_train.held_out(some)}
    for how in ("five folds", "sets left out"):
        held = [some[i] for each in rounds[how] for i in np.flatnonzero(each.held)]
        assert held and not any(e.line for e in held)
    lines = rounds[head_train.LINES_LEFT_OUT]
    measured = Counter()
    for each in lines:
        kept, held = ([some[i] for i in np.flatnonzero(which)] for which in each)
        (kind,) = {e.line for e in held}
        measured[kind] += len(held)
        assert kind not in {e.line for e in kept}
        assert not {e.prompt for e in kept} & {e.prompt for e in held}
    assert measured == Counter(e.line for e in some if e.line)


def test_a_head_that_learned_from_lines_passes_over_what_a_line_does_to_a_state() -> None:
    """A line moves every state along one direction, by more than harm does along its own."""
    rng = np.random.default_rng(0)
    plain = examples(400)
    harm = np.array([e.compliance for e in plain], float)
    states = rng.normal(size=(400, 16))
    states[:, 0] += 4 * harm  # what harm looks like
    states[:, 1] += 4 * harm  # and what else comes with it, until a line is there
    swayed = head_lines.with_appeals(plain)
    at = [int(e.prompt.split()[1]) for e in swayed]
    moved = states[at]
    moved[:, 1] -= 6.0
    refused = [e._replace(task="refusal", refusal=float(i % 2 == 0)) for i, e in enumerate(plain[:10])]
    known, seen = plain + refused, np.vstack([states, states[:10]])
    nothing = np.zeros(len(known) + len(swayed))
    none = rubric.RuleFeatures(nothing, nothing > 0, nothing, nothing > 0)
    arrays = head_train.fit_pairs(known + swayed, np.vstack([seen, moved]), none)
    is_harm, margins = harm[at] == 1, np.zeros(len(moved))
    for complies, least, most in (
        (False, 0.0, 0.2),
        (True, 0.8, 1.0),
    ):  # without the steady pair, and with it
        by = rubric.RuleFeatures(
            margins, np.full(len(moved), complies), margins, np.full(len(moved), complies)
        )
        assert least <= float(np.mean(rubric.head_logits(arrays, moved, by).logits[is_harm] > 0)) <= most
