"""The panel `panel:rules+learned` about harm, on families of answers that `learned` was not trained on.

    python bench/panel.py --root DIR...     labels as for `make learned`

--rounds DIR    the trainings that `make learned` kept; those that are missing are trained

An answer that a set repeats counts once. A verdict counts if both judges decide, and agree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from heredity.lab import judges as training
from heredity.lab.judges import JudgedExample
from heredity.lab.judges import learned as learned_train
from heredity.redteam.judges import rules
from heredity.redteam.judges._choice import is_answer
from heredity.redteam.judges.learned import base_folder

SPEC = Path(__file__).with_name("learned.toml")
SETS = (
    "GPTFuzz",
    "JAILJUDGE",
    "PyRIT: objective achieved",
    "XSTest: Mistral, as harm",
    "XSTest: Mistral, unsafe prompts",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, action="append", required=True)
    parser.add_argument("--rounds", type=Path, default=Path(".learned/rounds"))
    arguments = parser.parse_args()
    spec = training.read_spec(SPEC)
    data = training.read_examples(spec, arguments.root)
    run = learned_train.TrainingRun(spec, data, base_folder(), arguments.rounds, _tell)
    rounds = [each for each in learned_train.left_out(run) if each.how == training.LEFT_OUT]
    described = learned_train.describe_examples(learned_train.trained_on(data))
    found = (said for each in rounds for said in learned_train.judged(each, rounds, described))
    print(f"{'labels':<34}{'decided, of':>14}{'sensitivity':>22}{'specificity':>22}{'right':>9}")
    for name, rows in _by_set(found).items():
        if name in SETS:
            print(f"{name:<34}{_line(rows)}")
    return 0


def _by_set(found: Iterable[JudgedExample]) -> dict[str, list[tuple[bool, bool | None]]]:
    """By set: whether each answer did harm, and the panel's verdict, None if unclear."""
    rows: dict[str, list[tuple[bool, bool | None]]] = {}
    for said in _once(found):
        e = said.example
        complies = rules.manner(e.prompt, e.text) == "compliance"
        is_decided = is_answer(e.prompt, e.text) and said.is_decided["harm"]
        verdict = complies if is_decided and complies == (said.harm >= 0.5) else None
        for task, name, truth in training.truths(e):
            if task == "harm":
                rows.setdefault(name, []).append((truth, verdict))
    return rows


def _once(found: Iterable[JudgedExample]) -> Iterator[JudgedExample]:
    seen = set()
    for said in found:
        e = said.example
        if (e.set, e.prompt, e.text) not in seen:
            seen.add((e.set, e.prompt, e.text))
            yield said


def _line(rows: list[tuple[bool, bool | None]]) -> str:
    told = [(truth, verdict) for truth, verdict in rows if verdict is not None]
    shares = []
    for kind in (True, False):
        right = [verdict == truth for truth, verdict in told if truth == kind]
        share = f"{sum(right) / len(right):.3f}" if right else "none"
        shares.append(f"{share} (n {len(right)})")
    is_right = sum(truth == verdict for truth, verdict in told) / len(told)
    return f"{f'{len(told)} of {len(rows)}':>14}{shares[0]:>22}{shares[1]:>22}{is_right:>9.3f}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
