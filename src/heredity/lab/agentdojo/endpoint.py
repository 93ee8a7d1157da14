"""A model behind an OpenAI-compatible endpoint, as an element of AgentDojo's pipeline.

A part of the script suites.py, for the interpreter that has AgentDojo.

Promises: greedy decoding, in each request by name: AgentDojo's own client leaves out a temperature of 0. No
proxy is asked. An endpoint that gives no answer raises an error; the answer is not replaced.
Leaves to others: the loop and the tools (AgentDojo), and errors as rows (suites.py).
"""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

Theirs = Any  # an object of AgentDojo, which heredity does not import
Json = dict[str, Any]
STAND_IN = "local"  # AgentDojo's name of a local model; some attacks address the model by it
SECONDS = 1800.0  # for one answer: it may wait behind others
_NO_TOOLS = "tools-not-shown"  # heredity's code for a model whose template shows no tools


class EndpointError(Exception):
    """The endpoint gave no answer; `code` is why."""

    code = ""


def no_answer(code: str, message: str) -> EndpointError:
    """The exception of an endpoint that gave no answer."""
    found = EndpointError(f"{code}: {message}")
    found.code = code
    return found


class ChatEndpoint:
    """An OpenAI-compatible endpoint, asked without a proxy."""

    def __init__(self, url: str, seconds: float = SECONDS) -> None:
        self.url, self._seconds = url.rstrip("/"), seconds
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def message(self, body: Json) -> Json:
        """The message of the answer to a request. Raises EndpointError."""
        asked = urllib.request.Request(
            f"{self.url}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer none"},
        )
        try:
            with self._opener.open(asked, timeout=self._seconds) as answer:
                found = json.load(answer)["choices"][0]["message"]
        except urllib.error.HTTPError as error:
            raise _of_server(error) from None
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise no_answer("no-answer", f"{type(error).__name__}: {error}") from None
        if not isinstance(found, dict):
            raise no_answer("no-answer", "the message of the answer is no object")
        return found


def _of_server(error: urllib.error.HTTPError) -> EndpointError:
    """The server's own code and words."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        told = json.load(error).get("error")
        if isinstance(told, dict):
            code = told.get("reason") or told.get("code") or error.code
            return no_answer(str(code), str(told.get("message"))[:500])
    return no_answer(f"http-{error.code}", str(error.reason))


class PipelineModel:
    """A model as an element of AgentDojo's pipeline, for one conversation. It keeps the messages."""

    name = STAND_IN

    def __init__(self, endpoint: ChatEndpoint, name: str, settings: Json, shows_tools: bool) -> None:
        """settings: `seed` and `max_tokens` of each request."""
        self._endpoint, self._model, self._settings = endpoint, name, settings
        self._shows_tools = shows_tools
        self.messages: list[Theirs] = []

    def query(
        self,
        query: str,
        runtime: Theirs,
        env: Theirs,
        messages: Sequence[Theirs] = (),
        extra_args: Theirs = None,
    ) -> tuple[Theirs, ...]:
        """The conversation with the model's next message."""
        self.messages = list(messages)
        ask = self._with_tools if self._shows_tools else self._with_words
        self.messages.append(ask(list(runtime.functions.values())))
        return query, runtime, env, self.messages, {} if extra_args is None else extra_args

    def _body(self, messages: list[Json]) -> Json:
        return {"model": self._model, "messages": messages, "temperature": 0.0, **self._settings}

    def _with_tools(self, tools: list[Theirs]) -> Json:
        """By the model's own template."""
        body = self._body([_sent(each) for each in self.messages])
        body["tools"] = [tool_schema(each) for each in tools]
        return read_message(self._endpoint.message(body))

    def _with_words(self, tools: list[Theirs]) -> Json:
        """With AgentDojo's own description of the tools in the system prompt; results come as the user's."""
        from agentdojo.agent_pipeline.llms.local_llm import _make_system_prompt, _parse_model_output

        sent = []
        for each in self.messages:
            role, text = each["role"], text_of(each)
            if role == "system":
                text = _make_system_prompt(text, tools)
            if role == "tool":
                role = "user"
                text = json.dumps({"error": each["error"]} if each["error"] else {"result": text})
            sent.append({"role": role, "content": text})
        answer = self._endpoint.message(self._body(sent)).get("content")
        found: Json = _parse_model_output(answer if isinstance(answer, str) else "")
        return found


def text_of(message: Json) -> str:
    """The text of a message of AgentDojo."""
    return "\n".join(part["content"] for part in message["content"] or () if part.get("content"))


def _sent(message: Json) -> Json:
    """A message of AgentDojo as the endpoint takes it."""
    role, text = message["role"], text_of(message)
    if role == "tool":
        return {"role": role, "content": message["error"] or text, "tool_call_id": message["tool_call_id"]}
    found: Json = {"role": role, "content": text}
    if role == "assistant" and message["tool_calls"]:
        found["content"] = text or None
        called = [
            (call.id, call.function, json.dumps(call.args, default=plain)) for call in message["tool_calls"]
        ]
        found["tool_calls"] = [
            {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}
            for ident, name, arguments in called
        ]
    return found


def tool_schema(tool: Theirs) -> Json:
    """A tool of AgentDojo as the endpoint takes it."""
    schema = tool.parameters.model_json_schema()
    function = {"name": tool.name, "description": tool.description, "parameters": schema}
    return {"type": "function", "function": function}


def read_message(message: Json) -> Json:
    """The model's message as AgentDojo has it.

    Its content is never null: AgentDojo would ask the whole task again, in the changed world. A call whose
    arguments cannot be read as a JSON object is text: the model called nothing.
    """
    from agentdojo.functions_runtime import FunctionCall

    text, calls = message.get("content"), []
    text = text if isinstance(text, str) else ""
    for place, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            continue
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except (ValueError, TypeError, RecursionError):
            arguments = None
        if isinstance(arguments, dict):
            made = {"function": str(function.get("name")), "args": arguments}
            calls.append(FunctionCall(**made, id=str(call.get("id") or f"call_{place}")))
        else:
            text += f"\n{function.get('name')} {function.get('arguments')}"
    content = [{"type": "text", "content": text}]
    return {"role": "assistant", "content": content, "tool_calls": calls or None}


def shows_tools(endpoint: ChatEndpoint, model: str) -> bool:
    """Whether a model's template shows tools. Raises EndpointError if the model does not answer at all."""
    tool = {"name": "noop", "description": "Do nothing.", "parameters": {"type": "object", "properties": {}}}
    body = {
        "model": model, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0.0,
        "max_tokens": 1, "tools": [{"type": "function", "function": tool}],
    }  # fmt: skip
    try:
        endpoint.message(body)
    except EndpointError as error:
        if error.code != _NO_TOOLS:
            raise
        return False
    return True


def plain(value: Theirs) -> object:
    """A value of AgentDojo in a form that JSON has."""
    try:
        return value.model_dump()
    except AttributeError:
        return str(value)
