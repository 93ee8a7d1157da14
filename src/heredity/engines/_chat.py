"""Messages to the text and tokens a model sees: by its own chat template, or a plain one for a base model.

Promises: the text is what the template gives, with the assistant's prefill at its end; a template that has no
system role gets the system message at the head of the first user message.
Leaves to others: what is said (application.py).
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from heredity.errors import EngineFailure
from heredity.records import Message, Request, Tool

PLAIN_STOP = "\nUser:"  # where a base model begins to speak for the user


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
        return PLAIN_STOP if self.is_base else ""

    @property
    def end(self) -> int:
        """The token that the tokenizer ends a text with."""
        found: int = self._tokenizer.eos_token_id
        return found

    def render(self, request: Request) -> str:
        """The full text for a request. Raises EngineFailure where the template refuses the messages."""
        if self.is_base:
            return _plain(request.messages) + request.prefill
        return self._apply(request.messages, request.tools) + request.prefill

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

    def stops(self, folder: Path) -> frozenset[int]:
        """The tokens that end an answer: by the model's files and by its template."""
        found: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            path = folder / name
            ids = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
            found |= set(ids if isinstance(ids, list) else [ids]) - {None}
        found |= {self._tokenizer.eos_token_id} - {None}
        ends = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|end|>", "</s>")
        vocabulary = self._tokenizer.get_vocab()
        return frozenset(found | {vocabulary[end] for end in ends if end in vocabulary})

    def _apply(self, messages: tuple[Message, ...], tools: tuple[Tool, ...]) -> str:
        if not self._has_system:
            messages = _merged(messages)
        try:
            text: str = self._tokenizer.apply_chat_template(
                [_as_dict(message) for message in messages],
                tools=[_schema(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=True,
            )
        except (
            Exception
        ) as error:  # a template is a program of the model's author; whatever it raises is its no
            raise EngineFailure(f"the model's chat template refuses these messages: {error}") from None
        return text

    @cached_property
    def _has_system(self) -> bool:
        probe = [{"role": "system", "content": "\x01mark\x01"}, {"role": "user", "content": "hi"}]
        try:
            return "\x01mark\x01" in self._tokenizer.apply_chat_template(probe, tokenize=False)
        except Exception:  # as above: this template has no system role
            return False


def _plain(messages: tuple[Message, ...]) -> str:
    titles = {"user": "User: ", "assistant": "Assistant: ", "tool": "Tool result: ", "system": ""}
    parts = [titles[message.role] + message.content.strip() for message in messages]
    return "\n\n".join([*parts, "Assistant:"])


def _merged(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if not messages or messages[0].role != "system":
        return messages
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        return (Message("user", messages[0].content), *messages[1:])
    user = Message("user", f"{messages[0].content}\n\n{messages[first].content}")
    return (*messages[1:first], user, *messages[first + 1 :])


def _as_dict(message: Message) -> dict[str, Any]:
    if not message.tool_calls:
        return {"role": message.role, "content": message.content}
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.content, "tool_calls": calls}


def _schema(tool: Tool) -> dict[str, Any]:
    properties = {name: {"type": "string", "description": what} for name, what in tool.parameters.items()}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}
