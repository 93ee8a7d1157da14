"""An engine: how the models of recipe.py answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import heredity as h


class ParrotCage:
    """Answers with the last message and the recorded marks."""

    def load(self, model: h.Model, folder: Path, tuning: Any = None, device: Any = None) -> ParrotEngine:
        return ParrotEngine(int(model.recipe.settings["marks"]))


class ParrotEngine:
    name, numerics = "parrot_cage", ""

    def __init__(self, marks: int) -> None:
        self.marks = "!" * marks

    def render(self, request: h.Request) -> str:
        return "\n".join(message.content for message in request.messages) + request.prefill

    def reply(self, requests: Iterable[h.Request | None]) -> Iterator[h.Reply]:
        for request in requests:
            if request is not None:
                text = f"Good morning and welcome. You said: {request.messages[-1].content}{self.marks}"
                yield h.Reply(request.key, self.render(request), text, stop="end")

    def close(self) -> None:
        pass
