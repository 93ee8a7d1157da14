"""A study's rows as CSV (RFC 4180, UTF-8), one trial per line, for a spreadsheet or a data frame.

Promises: constant memory. No cell is a formula to a spreadsheet. The only control codes are tab and line
break. The same study gives the same bytes.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from heredity.core.files import write_atomic
from heredity.study import aggregate, labels
from heredity.study.labels import Drawn
from heredity.study.plan import Plan
from heredity.study.report._rows import TrialTable, chosen_names, columns, whole

# A spreadsheet reads such a cell as a formula. It skips leading spaces; some accept full-width signs.
_FORMULA = re.compile(r"[ \u00a0\u3000]*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def write(folder: Path, out: Path, with_text: bool = True, models: Sequence[str] = ()) -> Path:
    """Write every asked trial of the study in `folder`, in the plan's order, to `out`, and return `out`.

    models: names; only their trials are written.
    Without text, there are no columns `evidence`, `text` and `withheld`, and `error` holds no message.
    """
    study = aggregate.read_study(folder)
    names = chosen_names(study.estimates.models, models)
    fields = columns(with_text)
    with TrialTable(folder, study.plan, names, with_text) as table, whole(out) as file:
        lines = csv.writer(codecs.getwriter("utf-8")(file))
        lines.writerow(fields)
        for row in table:
            lines.writerow([cell(getattr(row, name)) for name in fields])
    return out


def write_unlabelled(folder: Path, plan: Plan, drawn: Sequence[Drawn], out: Path) -> None:
    """Write drawn answers for a person to label elsewhere (labels.import_labels)."""
    labelled, responses = labels.labels_of(folder, drawn), labels.responses_of(folder, drawn)
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(["index", "trial", "question", "prompt", "answer", "label"])
    for row in (row for row in drawn if row.index in responses):
        prompt, answer = labels.label_texts(plan, row, responses[row.index])
        label = labelled[row.index].answer if row.index in labelled else ""
        question = labels.question(labels.probe_of(plan, row.index), row.task)
        lines.writerow([row.index, row.trial, question, cell(prompt), cell(answer), label])
    write_atomic(out, text.getvalue().encode())


def cell(value: str | int | None) -> str | int:
    """A value as a cell. A text that a spreadsheet would run gets a leading apostrophe."""
    if not isinstance(value, str):
        return "" if value is None else value
    value = _CONTROL.sub(_symbol, value)
    return f"'{value}" if _FORMULA.match(value) else value


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"
