"""The helpers of OpenAI's Python client. Its plain calls are asked by the tests of the server."""

import asyncio
from typing import Literal

import openai
import pydantic
from play import GIVEN, play

ASKED = {"model": GIVEN["model"], "messages": GIVEN["messages"], **GIVEN["drawn"]}
SHORT = {"model": GIVEN["model"], "messages": GIVEN["messages"], "max_tokens": 60}
client = openai.OpenAI(base_url=GIVEN["address"], max_retries=0)


class Ticket(pydantic.BaseModel):
    """The answer as JSON."""

    team: Literal["sales", "support"]


class Weather(pydantic.BaseModel):
    """Looks up the weather of a city."""

    city: str


def chat() -> str:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=GIVEN["address"], max_retries=0) as several:
            return (await several.chat.completions.create(**ASKED)).choices[0].message.content

    return asyncio.run(ask())


def schema() -> dict[str, str]:
    said = client.chat.completions.parse(**SHORT, response_format=Ticket)
    return said.choices[0].message.parsed.model_dump()


def schema_stream() -> dict[str, str]:
    with client.chat.completions.stream(**SHORT, response_format=Ticket) as events:
        parts = [event.delta for event in events if event.type == "content.delta"]
        message = events.get_final_completion().choices[0].message
    assert message.content == "".join(parts)
    return message.parsed.model_dump()


def responses_schema() -> dict[str, str]:
    said = client.responses.parse(
        model=GIVEN["model"], input="hello", max_output_tokens=60, text_format=Ticket
    )
    return said.output_parsed.model_dump()


def tools() -> list[str]:
    agent = client.with_options(base_url=GIVEN["agent_address"]).chat.completions
    asked = {"model": GIVEN["agent"], "tools": [openai.pydantic_function_tool(Weather, name="weather")]}
    first = agent.parse(**asked, messages=GIVEN["messages"]).choices[0].message
    (call,) = first.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": GIVEN["result"]}
    last = agent.parse(**asked, messages=[*GIVEN["messages"], first, result]).choices[0].message
    return [call.function.parsed_arguments.city, last.content]


play(chat, schema, schema_stream, responses_schema, tools)
