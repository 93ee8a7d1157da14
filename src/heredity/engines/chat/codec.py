"""Messages to the text and tokens a model sees: by its own chat template, or a plain one for a base model.

Promises: what is rendered is encoded as it is, and tokens come back as everything the model said.
Leaves to others: what is said (application.py) and the rendering (_template.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from heredity.core.errors import EngineFailure
from heredity.core.records import Message, Request
from heredity.engines.chat.template import Template

_MARK = "\x02answer\x03"


class Chat:
    """A tokenizer with its chat template."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        self.is_base = not self._tokenizer.chat_template
        self._shared: dict[tuple[Message, ...], tuple[int, ...]] = {}

    @property
    def stop_text(self) -> str:
        """Text that ends an answer beside the stop tokens; "" for none."""
        return self._template.stop_text

    @property
    def start(self) -> int | None:
        """The token that the tokenizer begins a text with, where it has one."""
        found: int | None = self._tokenizer.bos_token_id
        return found

    @property
    def end(self) -> int:
        """The token that the tokenizer ends a text with."""
        found: int = self._tokenizer.eos_token_id
        return found

    def render(self, request: Request) -> str:
        """The full text for a request. Raises EngineFailure where the template refuses the messages."""
        if not request.messages:
            return self._opening + request.prefill
        return (self._with_tools if request.tools else self._template).render(request)

    @cached_property
    def _opening(self) -> str:
        """What the tokenizer begins a text with, as text: `encode` adds it for a base model only."""
        first = self._tokenizer.encode("a", add_special_tokens=True)[:1]
        begins = self.start is not None and first == [self.start] and not self.is_base
        return str(self._tokenizer.bos_token) if begins else ""

    @cached_property
    def _template(self) -> Template:
        return self._template_for(None)

    @cached_property
    def _with_tools(self) -> Template:
        return self._template_for([{}])

    def _template_for(self, tools: list[dict[str, Any]] | None) -> Template:
        """transformers' own choice where there are several, but rendered here: its `strftime_now` tells the
        real time, and a prompt must be the same on any day."""
        if self.is_base:
            return Template("")
        try:
            source = self._tokenizer.get_chat_template(tools=tools)
        except ValueError as error:
            raise EngineFailure(f"the model has no chat template for this: {error}") from None
        return Template(source, specials=dict(self._tokenizer.special_tokens_map))

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of rendered text; nothing is added (the template has said all)."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=self.is_base))

    def continuation(self, text: str) -> tuple[int, ...]:
        """Tokens of a text that goes on behind a prompt: nothing is put before it."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: list[int] | tuple[int, ...]) -> str:
        """Text of tokens, special tokens included: everything the model said."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text

    def shared(self, request: Request) -> tuple[int, ...]:
        """The tokens that every request with these leading messages begins with; () for none.

        Where two different first words of the user leave the same tokens in front.
        """
        if not request.n_shared or len(request.messages) <= request.n_shared:
            return ()
        key = request.messages[: request.n_shared]
        if key not in self._shared:
            texts = (
                self.render(Request(0, (*key, Message("user", word)), tools=request.tools))
                for word in ("a b", "1 + 2")
            )
            first, second = (self.encode(text) for text in texts)
            n = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
            self._shared[key] = first[:n]
        return self._shared[key]

    def answer_end(self, folder: Path) -> int:
        """The token behind an answer: the one that the template writes there if it stops an answer, else the
        tokenizer's end of text."""
        if not self.is_base:
            turns = (Message("user", "a"), Message("assistant", _MARK), Message("user", "b"))
            after = self.render(Request(0, turns)).partition(_MARK)[2]
            if after and (first := self.continuation(after)[0]) in self.stops(folder):
                return first
        return self.end

    def stops(self, folder: Path) -> frozenset[int]:
        """The tokens that end an answer: by the model's files and by its template."""
        return stops(folder, self._tokenizer.get_vocab()) | ({self._tokenizer.eos_token_id} - {None})


def stops(folder: Path, vocabulary: Mapping[str, int]) -> frozenset[int]:
    """The tokens that end an answer by a model's files, and those of `vocabulary` that end a turn by name."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        ids = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        found |= set(ids if isinstance(ids, list) else [ids]) - {None}
    ends = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|end|>", "</s>")
    return frozenset(found | {vocabulary[end] for end in ends if end in vocabulary})
