"""litellm, as OpenAI's API and as Anthropic's."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks for a file at its import

import litellm
from play import GIVEN, play

WHERE = {"api_base": GIVEN["address"], "api_key": "none", "num_retries": 0}
NAME = f"openai/{GIVEN['model']}"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}  # fmt: skip


def chat() -> str:
    return litellm.completion(NAME, GIVEN["messages"], **GIVEN["drawn"], **WHERE).choices[0].message.content


def stream() -> list[str]:
    chunks = litellm.completion(NAME, GIVEN["messages"], stream=True, **GIVEN["drawn"], **WHERE)
    return [text for chunk in chunks if (text := chunk.choices[0].delta.content)]


def schema() -> dict[str, str]:
    form = {
        "type": "json_schema",
        "json_schema": {"name": "ticket", "schema": GIVEN["schema"], "strict": True},
    }
    said = litellm.completion(NAME, GIVEN["messages"], response_format=form, max_tokens=60, **WHERE)
    return json.loads(said.choices[0].message.content)


def tools() -> list[str]:
    asked = {"tools": [WEATHER]} | WHERE | {"api_base": GIVEN["agent_address"]}
    first = litellm.completion(f"openai/{GIVEN['agent']}", GIVEN["messages"], **asked).choices[0].message
    (call,) = first.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": GIVEN["result"]}
    more = [*GIVEN["messages"], first, result]
    last = litellm.completion(f"openai/{GIVEN['agent']}", more, **asked).choices[0].message
    return [json.loads(call.function.arguments)["city"], last.content]


def forced_tool() -> dict[str, str]:
    tool = {"type": "function", "function": {"name": "route", "parameters": GIVEN["schema"]}}
    said = litellm.completion(
        NAME, GIVEN["messages"], tools=[tool], tool_choice="required", max_tokens=60, **WHERE
    )
    return json.loads(said.choices[0].message.tool_calls[0].function.arguments)


def embeddings() -> list[list[float]]:
    found = litellm.embedding(f"openai/{GIVEN['encoder']}", GIVEN["texts"], encoding_format="float", **WHERE)
    return [each["embedding"] for each in found.data]


def anthropic() -> str:
    where = WHERE | {"api_base": GIVEN["address"].removesuffix("/v1")}
    said = litellm.completion(f"anthropic/{GIVEN['model']}", GIVEN["messages"], max_tokens=24, **where)
    return said.choices[0].message.content


def too_long() -> None:
    litellm.completion(NAME, [{"role": "user", "content": GIVEN["long"]}], **WHERE)


def unknown() -> None:
    litellm.completion("openai/nowhere", GIVEN["messages"], **WHERE)


play(chat, stream, schema, tools, forced_tool, embeddings, anthropic, too_long, unknown)
