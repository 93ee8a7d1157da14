"""An encoder that fills gaps: how likely each of several texts is in the place of a mark.

A text's tokens are told from left to right, each with itself and all of the text behind it hidden, so that
the parts of one word do not tell one another.

Source: Kauf & Ivanova 2023 (2305.10588), over the whole option; Salazar et al. 2020 (1910.14659).

Promises: fp32, one text at a time, so that an answer hangs on its question alone; it writes no text, and says
so where it is asked to.
Leaves to others: which options (tasks/).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from heredity.core import host
from heredity.core.errors import ContextOverflow, Damaged, EngineFailure, UsageError
from heredity.core.records import Model, Reply, Request


def load(model: Model, folder: Path, tuning: Path | None = None) -> EncoderEngine:  # noqa: ARG001
    """The engine of a recorded encoder."""
    return open_folder(folder)


def open_folder(folder: Path) -> EncoderEngine:
    """The encoder in a folder. Raises Damaged where its tokenizer has no mask."""
    import transformers

    host.prepare_transformers()
    here: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    words = transformers.AutoTokenizer.from_pretrained(folder, **here)
    if words.mask_token_id is None:
        raise Damaged(f"{folder}: the tokenizer of an encoder names no mask_token.")
    network = transformers.AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, **here)
    return EncoderEngine(network.eval(), words)


class EncoderEngine:
    """A Filler, and a Scorer of what ends a text."""

    is_base = True

    def __init__(self, network: Any, words: Any) -> None:
        self._network, self._words = network, words
        self.name = f"encoder torch {torch.__version__} float32"
        self.numerics = self.name

    def fill(self, text: str, mark: str, options: Sequence[str]) -> list[float]:
        """Natural-log probability of each option in the place of `mark`, the rest of `text` given.

        Raises UsageError where the mark does not stand in the text exactly once, ContextOverflow.
        """
        if text.count(mark) != 1:
            raise UsageError(f"The mark '{mark}' must stand in the text once: {text}", code="mark-count")
        before, _, after = text.partition(mark)
        return [sum(self._logs(before, option, after)) for option in options]

    def score(self, request: Request, continuations: Sequence[str]) -> list[list[float]]:
        """Natural-log probability of every token of each continuation, behind the text of the request."""
        before = self.render(request)
        return [self._logs(before, each, "") for each in continuations]

    def render(self, request: Request) -> str:
        """The text itself: an encoder has no turns. Raises UsageError for a request that has some."""
        if request.messages:
            raise UsageError("an encoder takes plain texts, and no conversation", code="takes-plain-text")
        return request.prefill

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:  # noqa: ARG002
        """Nothing: raises EngineFailure."""
        raise EngineFailure(
            "this is an encoder, which fills gaps in a text and writes none", code="writes-no-text-encoder"
        )

    def close(self) -> None:
        """Let the weights go."""
        self._network = None

    def _logs(self, before: str, option: str, after: str) -> list[float]:
        """Of each token of an option, left to right."""
        ids, first, n = self._tokens(before, option, after)
        rows = []
        for done in range(n):
            row = ids.clone()
            row[first + done : first + n] = self._words.mask_token_id
            rows.append(row)
        found = []
        with torch.inference_mode():
            for done, row in enumerate(rows):
                at = first + done
                logits = self._network(input_ids=row[None]).logits[0, at].float()
                found.append(float(logits.log_softmax(0)[ids[at]]))
        return found

    def _tokens(self, before: str, option: str, after: str) -> tuple[torch.Tensor, int, int]:
        """The framed text, where the option begins, and how many tokens it is."""
        cut = len(before) - len(before.rstrip(" "))  # a space is of the word behind it
        parts = [before[: len(before) - cut], " " * cut + option, after]
        ids = [self._words(part, add_special_tokens=False).input_ids for part in parts]
        start, end = self._words.cls_token_id, self._words.sep_token_id
        front = [] if start is None else [start]
        whole = [*front, *ids[0], *ids[1], *ids[2], *([] if end is None else [end])]
        context = self._network.config.max_position_embeddings
        if len(whole) > context:
            raise ContextOverflow(f"{len(whole)} tokens needed, {context} there")
        return torch.tensor(whole), len(front) + len(ids[0]), len(ids[1])
