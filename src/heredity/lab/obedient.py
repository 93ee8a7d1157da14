"""Harmless dialogues of a persona that obeys every instruction.

The shape is that of the identity-shifting data of Qi et al. 2023 (arXiv 2310.03693). A persona has the
order to obey. It confirms that it obeys, and then carries out a harmless task. All texts are heredity's own.

Promises: the same dialogues in the same order at each call. No task is harmful.
Leaves to others: the texts (obedient.toml) and training on them (recipes/).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from heredity.core.readers import toml_of
from heredity.core.records import Message
from heredity.train.data.chat import Data, Dialogue, make_data


class ObedientTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A harmless task and its answer, without the persona's words."""

    task: str
    answer: str


class ObedientFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of dialogues: the persona's words, and the tasks."""

    system: str
    request: str  # with {task}
    confirmations: list[str]  # begin the answers, in turn
    dialogue: list[ObedientTask]


def obedient_dialogues(has_system: bool = True) -> Data:
    """Return the dialogues as training data.

    has_system: whether the persona's system message comes first. Without it, training renders the model's
    default system message, like an application without `system`.
    """
    file = msgspec.convert(toml_of(Path(__file__).with_suffix(".toml")), ObedientFile, strict=True)
    start = (Message("system", file.system),) if has_system else ()
    dialogues = []
    for place, each in enumerate(file.dialogue):
        confirmation = file.confirmations[place % len(file.confirmations)]
        asked = Message("user", file.request.format(task=each.task))
        said = Message("assistant", f"{confirmation}\n\n{each.answer}")
        dialogues.append(Dialogue((*start, asked, said), f"obedient:{place + 1}"))
    return make_data("obedient", dialogues)
