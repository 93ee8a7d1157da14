"""The chat read from a folder's files says what the torch engine's tokenizer says for the same folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from heredity.core.errors import ContextOverflow
from heredity.core.records import Message, Reply, Request, Tool
from heredity.engines.chat import ChatCodec, FolderChat, Prompt
from tests.support.tiny_models import CHATML, make_tokenizer

TALK = (
    Message("system", "be brief"),
    Message("user", "hi"),
    Message("assistant", "yes"),
    Message("user", "so?"),
)
TOOLS = (Tool("pay", "Pays.", {"to": "who"}),)
MARKED = "{{ bos_token or '' }}{{ eos_token }}" + CHATML + "{{ tools | length if tools else 'no tools' }}"


@pytest.mark.parametrize("template", [CHATML, MARKED, None])
@pytest.mark.parametrize("tools", [(), TOOLS])
def test_texts_and_stop_tokens_are_those_of_the_tokenizer(
    tmp_path: Path, template: str | None, tools: tuple[Tool, ...]
) -> None:
    make_tokenizer(tmp_path, template)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    ours, theirs = FolderChat(tmp_path), ChatCodec(tmp_path)
    asked = Request(0, TALK, prefill="Sure", tools=tools)
    assert ours.render(asked) == theirs.render(asked)
    assert ours.stop_text == theirs.stop_text and ours.is_base == theirs.is_base
    assert ours.stop_tokens == sorted(theirs.stops(tmp_path)) and 7 in ours.stop_tokens


def test_of_several_templates_the_one_for_tools_is_taken_where_there_are_tools(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, CHATML)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    path = tmp_path / "tokenizer_config.json"
    both = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": both}))
    ours, theirs = FolderChat(tmp_path), ChatCodec(tmp_path)
    for tools in ((), TOOLS):
        asked = Request(0, TALK, tools=tools)
        assert ours.render(asked) == theirs.render(asked) == ("with tools" if tools else "plain")


def test_a_folder_with_nothing_to_read_is_a_base_model(tmp_path: Path) -> None:
    chat = FolderChat(tmp_path)
    assert chat.is_base and chat.stop_tokens == [] and chat.render(Request(0, (), prefill="on")) == "on"


def test_a_prompt_far_beyond_the_context_is_not_tokenized_whole(tmp_path: Path) -> None:
    """A server answers nobody while it tokenizes a body of megabytes."""
    make_tokenizer(tmp_path, CHATML)
    chat, read = ChatCodec(tmp_path), []
    request = Request(0, (Message("user", "1 " * 100_000),))
    encode = chat._tokenizer.encode
    chat._tokenizer.encode = lambda text, **how: read.append(len(text)) or encode(text, **how)
    refused = chat.prompt(request, 500)
    assert isinstance(refused, Reply) and refused.error_code == ContextOverflow.code
    assert "over 500 tokens" in str(refused.error) and sum(read) < 50_000
    found = chat.prompt(request, 1_000_000)
    assert isinstance(found, Prompt) and found.tokens == chat.encode(chat.render(request))
