"""Answers in a garak report (`garak.*.report.jsonl`): every output of every completed attempt.

Each output of an attempt is a sample, and the probe's class is the category. Each detector is a judge with
recorded verdicts: a score of at least the run's `eval_threshold` (default 0.5) is a hit. An attempt's intent,
a code of garak's typology, becomes a threat of its probe, such as `garak:0.17.1/S008spam`.
Source: garak 0.17, garak/attempt.py (Attempt.as_dict) and garak/command.py (start_run); older reports keep
prompt and outputs as plain texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from heredity.core.errors import BadInput
from heredity.core.readers import json_lines
from heredity.core.sanitize import clean_text
from heredity.study.importers import Lacking, RecordedAnswer, conversation

OWN = {"category": "probe_classname", "sample": "generation"}
_MAX_ATTEMPTS = 10_000_000  # of one probe; a larger number is not one of a run
_COMPLETE = 2  # an attempt is written once when it is asked (1) and once when it is detected


def is_mine(path: Path, start: bytes) -> bool:
    """Whether a file is a garak report, by its first bytes."""
    return path.suffix.lower() == ".jsonl" and b'"entry_type"' in start.partition(b"\n")[0]


def read(path: Path) -> Iterator[RecordedAnswer]:
    """Every output with its line. Raises BadInput for an attempt that is not as garak writes it."""
    model, threshold, version = "", 0.5, ""
    for line, entry in json_lines(path):
        kind = entry.get("entry_type")
        if kind == "start_run setup":
            names = ("plugins.target_name", "plugins.model_name", "plugins.target_type", "plugins.model_type")
            model = next((str(entry[name]) for name in names if entry.get(name)), "") or model
            level = entry.get("run.eval_threshold")
            threshold = float(level) if isinstance(level, (int, float)) else threshold
        elif kind == "init":
            version = clean_text(str(entry.get("garak_version") or ""))
        elif kind == "attempt" and _is_complete(entry):
            for raw in _outputs(path, line, entry, model, threshold):
                intent = entry.get("intent")
                intents = intent if isinstance(intent, list) else [intent]
                scheme = f"garak:{version}/" if version else "garak:"
                yield raw._replace(
                    threats=tuple(
                        scheme + clean_text(each) for each in intents if isinstance(each, str) and each
                    )
                )


def lacking(path: Path) -> Lacking:
    """The attempts never detected, those that ask nothing, and those whose numbers (`seq`) are left out."""
    begun: set[tuple[str, str]] = set()
    complete: set[tuple[str, str]] = set()
    numbers: dict[str, set[int]] = {}
    for line, entry in json_lines(path):
        is_complete = _is_complete(entry)
        if entry.get("entry_type") != "attempt" or not (is_complete or entry.get("uuid")):
            continue  # without an id, nothing tells which rows are of one attempt
        probe, seq = str(entry.get("probe_classname")), entry.get("seq")
        key = (probe, str(entry.get("uuid") or f"line {line}"))
        begun.add(key)
        if is_complete:
            complete.add(key)
        if type(seq) is int and 0 <= seq < _MAX_ATTEMPTS:
            numbers.setdefault(probe, set()).add(seq)
    n_left_out = sum(max(seen) + 1 - len(seen) for seen in numbers.values())
    return Lacking(path, len(begun - complete) + n_left_out, len(begun) + n_left_out, "attempt")


def _outputs(
    path: Path, line: int, entry: dict[str, Any], model: str, threshold: float
) -> Iterator[RecordedAnswer]:
    outputs, scores = entry.get("outputs"), entry.get("detector_results")
    if not isinstance(outputs, list) or "prompt" not in entry:
        raise BadInput(path, "an attempt without prompt or outputs. Is it a garak report?", line)
    for place, output in enumerate(outputs):
        row = {
            "prompt": _prompt(entry["prompt"]),
            "response": output.get("text") if isinstance(output, dict) else output,
            "model": model,
            "generation": place,
            "probe_classname": entry.get("probe_classname"),
            "goal": entry.get("goal"),
            "intent": entry.get("intent"),
        }
        yield RecordedAnswer(line, row, _hits(scores if isinstance(scores, dict) else {}, place, threshold))


def _is_complete(entry: Mapping[str, object]) -> bool:
    """Whether an attempt was detected and asked anything: one of garak's `test.Test` has no words."""
    if entry.get("status") != _COMPLETE:
        return False
    turns, _ = conversation(_prompt(entry.get("prompt", "?")))
    return any(map(str.strip, turns))


def _prompt(prompt: Any) -> Any:
    """A conversation's turns as messages; a plain text as it is."""
    if isinstance(prompt, dict) and isinstance(prompt.get("turns"), list):
        return prompt["turns"]
    return prompt


def _hits(scores: dict[str, Any], place: int, threshold: float) -> dict[str, bool]:
    hits = {}
    for detector, values in scores.items():
        value = values[place] if isinstance(values, list) and place < len(values) else None
        if isinstance(value, (int, float)):
            hits[str(detector)] = value >= threshold
    return hits
