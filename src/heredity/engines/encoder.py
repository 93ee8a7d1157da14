"""An encoder that scores texts in a masked position: how likely each of several options is.

The tokens of an option are scored from left to right. Each is masked together with the rest of the option, so
that the parts of one word do not reveal each other.

Source: Kauf & Ivanova 2023 (2305.10588), over the whole option; Salazar et al. 2020 (1910.14659).

Promises: fp32, one text at a time, so that a score depends only on its text. It generates no text: a request
for one is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from heredity.core import host
from heredity.core.errors import ContextOverflow, Damaged, EngineFailure, UsageError
from heredity.core.host import CPU, Device
from heredity.core.records import Model, Reply, Request
from heredity.engines import Capabilities, TokenScores
from heredity.formats.tokenizer_files import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.models.auto.auto_factory import _BaseAutoModelClass


def load(
    model: Model,  # noqa: ARG001
    folder: Path,
    tuning: Path | None = None,  # noqa: ARG001
    device: Device | None = None,
) -> EncoderEngine:
    return EncoderEngine(folder, host.choose_device(device))


class SilentEngine:
    """A loaded model, in fp32, that generates no text: a request for an answer is refused."""

    kind, why = "", ""

    def __init__(
        self,
        auto: type[_BaseAutoModelClass],
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        device: Device,
    ) -> None:
        host.prepare_transformers()
        here = {"trust_remote_code": False, "local_files_only": True}
        loaded = auto.from_pretrained(folder, dtype=torch.float32, **here)
        self._model: PreTrainedModel | None = loaded.eval().to(device.torch)
        self._tokenizer, self._device = tokenizer, device.torch
        self.name = f"{self.kind} torch {torch.__version__} float32{device.suffix}"
        self.numerics = self.name

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:  # noqa: ARG002
        raise EngineFailure(self.why)

    def close(self) -> None:
        self._model = None

    @property
    def _loaded(self) -> PreTrainedModel:
        if self._model is None:
            raise EngineFailure("this engine is closed")
        return self._model


class EncoderEngine(SilentEngine):
    """An engine that scores the end of a text by masked positions."""

    kind, why = "encoder", "this is an encoder, which fills masked positions and generates no text"
    boundary = ""

    def __init__(self, folder: Path, device: Device = CPU) -> None:
        """Load the model in a folder. Raises Damaged if its tokenizer does not load, or has no mask token."""
        import transformers

        tokenizer = load_tokenizer(folder)
        if tokenizer.mask_token_id is None:
            raise Damaged(f"{folder}: the tokenizer of an encoder names no mask_token.")
        super().__init__(transformers.AutoModelForMaskedLM, folder, tokenizer, device)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(is_base=True, scorer=self)

    def score(self, request: Request, continuations: Sequence[str]) -> list[TokenScores]:
        """Return the natural-log probability of every token of each continuation of the request's text."""
        before = self.render(request)
        return [TokenScores(self._logs(before, each)) for each in continuations]

    def render(self, request: Request) -> str:
        """Return the plain text. Raises UsageError for a request with messages: an encoder has no turns."""
        if request.messages:
            raise UsageError("an encoder takes plain texts, and no conversation")
        return request.prefill

    def _logs(self, before: str, option: str) -> list[float]:
        """Return the log-probability of each token of an option, left to right."""
        ids, first, n = self._tokens(before, option)
        rows = []
        for done in range(n):
            row = ids.clone()
            row[first + done : first + n] = self._tokenizer.mask_token_id
            rows.append(row)
        logs = []
        with torch.inference_mode():
            for done, row in enumerate(rows):
                at = first + done
                logits = self._loaded(input_ids=row[None]).logits[0, at].float()
                logs.append(float(logits.log_softmax(0)[ids[at]]))
        return logs

    def _tokens(self, before: str, option: str) -> tuple[torch.Tensor, int, int]:
        """Return the text with its special tokens, the place of the option, and its number of tokens."""
        cut = len(before) - len(before.rstrip(" "))  # a space belongs to the word after it
        parts = [before[: len(before) - cut], " " * cut + option]
        ids = [self._tokenizer(part, add_special_tokens=False).input_ids for part in parts]
        start, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        front = [] if start is None else [start]
        whole = [*front, *ids[0], *ids[1], *([] if end is None else [end])]
        context = self._loaded.config.max_position_embeddings
        if len(whole) > context:
            raise ContextOverflow(f"{len(whole)} tokens needed, {context} there")
        return torch.tensor(whole, device=self._device), len(front) + len(ids[0]), len(ids[1])
