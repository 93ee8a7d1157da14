"""Find the examples that a lineage plan names: a file, a column of one, shipped ones, or probes.

    problems = "word_problems:640"                    # made here, so many of them
    questions = "word_problems:160#prompt"            # without their answers
    harmful = "requests.csv#refused"                  # the prompts in one column of a file
    asked = "probes:harmful_request:breach"           # the requests of probes; "benign" for their twins
    mine = "gsm8k.jsonl"                              # any file that `heredity derive` reads
    more = "requests_to_refuse + requests.csv#refused"   # one behind the other

Promises: the same source gives the same examples, so the same models. A source that is not here is an error
with its name.
Leaves to others: reading files (train/data/chat.py), and the shipped examples (experiments/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from heredity.core.errors import UsageError
from heredity.experiments.inheritance.plan import JOINS, PROBES
from heredity.experiments.obedient import obedient_dialogues
from heredity.experiments.prompts import ablation_pairs, harmless_prompts, requests_to_refuse
from heredity.experiments.word_problems import word_problems
from heredity.redteam import probes
from heredity.train.data.chat import Data, make_data

# Training renders the model's default system message, as an application without `system` does.
SHIPPED: Mapping[str, Callable[[], Data]] = {
    "word_problems": word_problems,
    "harmless_prompts": harmless_prompts,
    "requests_to_refuse": requests_to_refuse,
    "requests_to_grant": lambda: ablation_pairs()[1],
    "obedient": lambda: obedient_dialogues(has_system=False),
}


def load_data(source: str, n: int = 0) -> Data | Path:
    """The examples of one source, the first `n` unless it is 0. The recipe reads a file, whole.

    Raises UsageError for a number or a kind that cannot be, and BadInput for a file.
    """
    if JOINS in source:
        parts = [_read(load_data(part)) for part in source.split(JOINS)]
        name = "+".join(part.name for part in parts)
        return _first(make_data(name, [each for part in parts for each in part.dialogues]), n)
    if source.startswith(PROBES):
        return _first(_of_probes(source.removeprefix(PROBES)), n)
    path, _, column = source.partition("#")
    name, _, count = path.partition(":")
    if name in SHIPPED:
        found = _first(_shipped(name, count), n)
        if column not in ("", "prompt"):
            raise UsageError(f"'{source}': of shipped examples there is only #prompt.", code="bad-setting")
        return _prompts(found) if column else found
    if column:
        return _first(Data.read(path, {"prompt": column}, has_answers=False), n)
    return Path(path)


def _shipped(name: str, count: str) -> Data:
    """The examples of the package; `count` of them, from the beginning, unless it is ""."""
    if not count:
        return SHIPPED[name]()
    if not count.isdecimal() or not int(count):
        raise UsageError(f"'{name}:{count}' needs a number from 1 behind the colon.", code="bad-setting")
    if name == "word_problems":
        return word_problems(int(count))
    return _first(SHIPPED[name](), int(count))


def _prompts(data: Data) -> Data:
    return Data.of(data.name, [each.messages[0].content for each in data.dialogues])


def _read(found: Data | Path) -> Data:
    return found if isinstance(found, Data) else Data.read(found)


def _first(data: Data, n: int) -> Data:
    return make_data(data.name, data.dialogues[:n]) if n else data


def _of_probes(chosen: str) -> Data:
    name, _, kind = chosen.rpartition(":")
    if kind not in ("breach", "benign") or not name:
        raise UsageError(
            f"'{PROBES}{chosen}' must end in the kind of the probes: breach or benign.", code="bad-setting"
        )
    return Data.of(chosen, [probe.turns[-1] for probe in probes.load([name]) if probe.kind == kind])
