"""A model folder's chat, read from its files only: for an engine whose tokenizer is in another process.

Promises: prompts and stop tokens equal those of the torch engine for the folder.
Leaves to others: tokens (the server's own tokenizer).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from heredity.core.errors import Refused
from heredity.core.records import Message, Request, Tool
from heredity.engines.chat.codec import ChatCodec, Template, TemplateStopped, stop_tokens
from heredity.formats.gguf import GgufChat

_SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_PROBES = (
    (Message("user", "hi"),),
    (
        Message("system", "be brief"),
        Message("user", "hi"),
        Message("assistant", "yes"),
        Message("user", "so?"),
    ),
)


class FolderChat:
    """Templates, special tokens and stop tokens of the model in a folder.

    weights: the folder with its configuration, if that is another one: an adapter has that of its base.
    """

    def __init__(self, folder: Path, weights: Path | None = None) -> None:
        specials: dict[str, str] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            for key, value in _read(folder / name).items():
                text = value.get("content") if isinstance(value, dict) else value
                if key in _SPECIALS and isinstance(text, str):
                    specials[key] = text
        self._template = Template(template_source(folder), specials=specials)
        with_tools = template_source(folder, "tool_use")
        self._with_tools = Template(with_tools, specials=specials) if with_tools else self._template
        tokens = vocabulary(folder)
        ends = {tokens[end] for end in (specials.get("eos_token", ""),) if end in tokens}
        self.stop_tokens = sorted(stop_tokens(weights or folder, tokens) | ends)

    @property
    def is_base(self) -> bool:
        """Whether there is no chat template."""
        return bool(self._template.stop_text)

    @property
    def stop_text(self) -> str:
        """Text that ends an answer, in addition to the stop tokens; "" if nothing does."""
        return self._template.stop_text

    def render(self, request: Request) -> str:
        """Return the prompt of a request. Raises EngineFailure if the template refuses the messages."""
        return (self._with_tools if request.tools else self._template).render(request)


def read_gguf_chat(folder: Path) -> GgufChat:
    """Read the chat of a model folder for its GGUF, with the folder's own tokenizer."""
    return GgufChat(template_source(folder), ChatCodec(folder).answer_end(folder))


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer of its own; that of an adapter then replaces its base's."""
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file()


def template_source(folder: Path, name: str = "default") -> str:
    """Return a model folder's chat template of this name; "" if it has none."""
    place = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
    if (folder / place).is_file():
        return (folder / place).read_text("utf-8")
    path = folder / "tokenizer_config.json"
    template = _read(path).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == name]
        template = named[0].get("template") if named else None
    elif name != "default":
        return ""
    return template if isinstance(template, str) else ""


def check_template(source: str, place: str) -> None:
    """Render a template on short conversations, before its model is recorded.

    Raises Refused if it is stopped: it takes too many steps, or its text could differ from run to run.
    A template may refuse messages by its own rules, such as a system message.
    """
    for messages in _PROBES:
        for tools in ((), (Tool("pay", "Pays.", {"to": "who"}),)):
            try:
                Template(source).apply(messages, tools)
            except TemplateStopped as error:
                message = f"{place}: its chat template was stopped: {error}. Replace the template."
                raise Refused(message) from None
            except Exception:  # as in `render`, which reports it when the model is asked
                continue


def vocabulary(folder: Path) -> dict[str, int]:
    """Return token ids by text, from the files: the vocabulary and the added tokens."""
    tokenizer = _read(folder / "tokenizer.json")
    model = tokenizer.get("model")
    stored = model.get("vocab") if isinstance(model, dict) else None
    tokens: dict[str, int] = dict(stored) if isinstance(stored, dict) else {}
    tokens |= {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []}
    decoder = _read(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    return tokens | {entry["content"]: int(number) for number, entry in decoder.items()}


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}
