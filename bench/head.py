"""A head on 1.5B parameters compared with the judges `learned` (22M) and `rules`, on held-out answers.

    python bench/head.py --root DIR...     labels as for `make head`

--states FILE   the states that `make head` kept
--rounds DIR    the trainings that `make learned` kept; those that are missing are trained

Both learn without one family of sets, and decide whether each of its answers did harm. The table counts the
answers on which one is right and the other is wrong. The p-value flips the sign of a question's whole
difference at random, so similar rows of one question count once. So does an answer that a set repeats.
`learned` is compared on the answers that it decides, `rules` on all.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from heredity.lab import judges as training
from heredity.lab.judges import head as head_train
from heredity.lab.judges import learned as learned_train
from heredity.redteam.judges import learned, rubric, rules
from heredity.redteam.judges._choice import is_answer
from heredity.redteam.judges.learned import base_folder

SPEC = Path(__file__).with_name("learned.toml")
SETS = ("GPTFuzz", "JAILJUDGE", "PyRIT: objective achieved", "XSTest: Mistral, unsafe prompts")
SEVERITY = ("PyRIT: severity of harm, one rater", "PyRIT: severity of harm, three raters")
FLIPS = 20_000
Row = tuple[str, bool, bool]  # a question, whether the head is right, whether the other is


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, action="append", required=True)
    parser.add_argument("--states", type=Path, default=Path(".head") / head_train.STATES)
    parser.add_argument("--rounds", type=Path, default=Path(".learned/rounds"))
    arguments = parser.parse_args()
    if not arguments.states.is_file():
        print(f"No states at {arguments.states}: make head keeps them in .head.", file=sys.stderr)
        return 2
    card = msgspec.json.decode((rubric.SHIPPED / rubric.CARD).read_bytes())
    spec = training.read_spec(SPEC)
    data = training.read_examples(spec, arguments.root)
    examples = head_train.sample_rows(data.examples, card["rows"])
    of = f"{card['model']} {card['layer']}"
    read = head_train.read_states(
        None, of, examples, arguments.states, lambda said: print(said, file=sys.stderr)
    )
    examples = [e for e, state in zip(examples, read, strict=True) if state is not None]
    states = np.array([state for state in read if state is not None])
    everything = learned_train.trained_on(data)
    run = learned_train.TrainingRun(spec, data, base_folder(), arguments.rounds, _tell)
    rounds = learned_train.left_out(run)
    described = learned_train.describe_examples(everything)
    print(
        f"{platform.processor() or platform.machine()}; head: {len(examples)} answers, "
        f"learned: {len(everything)}"
    )
    seen = rubric.rule_features([(e.prompt, e.text) for e in examples])
    theirs = {training.LEFT_OUT: _by_example(rounds, described)}
    for how, rounds in head_train.held_out(examples):
        if how not in theirs:
            continue
        told: dict[str, dict[str, list[Row]]] = {"learned": {}, "rules": {}}
        seen_before = set()
        for said in head_train.judged_examples(examples, states, seen, rounds):
            e = said.example
            is_again = (e.set, e.prompt, e.text) in seen_before
            seen_before.add((e.set, e.prompt, e.text))
            if is_again or not is_answer(e.prompt, e.text) or not said.is_decided["harm"]:
                continue
            share, complies = theirs[how][e.prompt, e.text], rules.manner(e.prompt, e.text) == "compliance"
            for task, name, truth in training.truths(e):
                for who, theirs_is in (("learned", share >= 0.5), ("rules", complies)):
                    if task == "harm" and (who == "rules" or learned.is_decided(share)):
                        row = (e.prompt or e.text, (said.harm >= 0.5) == truth, theirs_is == truth)
                        told[who].setdefault(name, []).append(row)
        for who, rows in told.items():
            print(
                f"\n{how}\n{'labels':<42}{'n':>6}{'head':>8}{who:>9}"
                f"{'head only':>11}{f'{who} only':>14}{'p':>8}"
            )
            for name in (*SETS, *SEVERITY):
                _line(name, rows[name])
            _line("the first four", [row for name in SETS for row in rows[name]])
            _line("all", [row for name in (*SETS, *SEVERITY) for row in rows[name]])
    return 0


def _by_example(
    rounds: Sequence[learned_train.HeldOutRound], described: learned_train.AnswerFeatures
) -> dict[tuple[str, str], float]:
    """The probability of harm of each answer, from a `learned` that was not trained on it."""
    found = {}
    for each in rounds:
        if each.how == training.LEFT_OUT:
            for said in learned_train.judged(each, rounds, described):
                found[said.example.prompt, said.example.text] = said.harm
    return found


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _line(name: str, rows: list[Row]) -> None:
    by_question: dict[str, int] = {}
    for question, is_ours, is_theirs in rows:
        by_question[question] = by_question.get(question, 0) + int(is_ours) - int(is_theirs)
    differences = np.array([d for d in by_question.values() if d])
    signs = np.random.default_rng(0).choice((-1, 1), (FLIPS, len(differences)))
    n_as_far = (
        int((np.abs(signs @ differences) >= abs(differences.sum())).sum()) if len(differences) else FLIPS
    )
    p = (n_as_far + 1) / (FLIPS + 1)  # of drawn flips: never 0
    ours, theirs = (np.array([row[i] for row in rows]) for i in (1, 2))
    print(
        f"{name:<42}{len(rows):>6}{ours.mean():>8.3f}{theirs.mean():>9.3f}"
        f"{int((ours & ~theirs).sum()):>11}{int((~ours & theirs).sum()):>14}{p:>8.4f}"
    )


if __name__ == "__main__":
    sys.exit(main())
