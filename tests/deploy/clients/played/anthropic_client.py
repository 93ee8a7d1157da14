"""Anthropic's Python client."""

from typing import Literal

import anthropic
import pydantic
from play import GIVEN, play

ADDRESS = GIVEN["address"].removesuffix("/v1")
ASKED = {"model": GIVEN["model"], "messages": GIVEN["messages"], "max_tokens": GIVEN["drawn"]["max_tokens"]}
client = anthropic.Anthropic(base_url=ADDRESS, api_key="none", max_retries=0)


class Ticket(pydantic.BaseModel):
    """The answer as JSON."""

    team: Literal["sales", "support"]


@anthropic.beta_tool
def weather(city: str) -> str:
    """Look up the weather of a city.

    Args:
        city: the name of a city
    """
    CALLED.append(city)
    return GIVEN["result"]


CALLED: list[str] = []


def chat() -> str:
    return client.messages.create(**ASKED).content[0].text


def stream() -> list[str]:
    with client.messages.stream(**ASKED) as events:
        parts = list(events.text_stream)
        assert events.get_final_text() == "".join(parts)
    return parts


def schema() -> dict[str, str]:
    return client.messages.parse(
        **ASKED | {"max_tokens": 60}, output_format=Ticket
    ).parsed_output.model_dump()


def tools() -> list[str]:
    agent = client.with_options(base_url=GIVEN["agent_address"].removesuffix("/v1"))
    runner = agent.beta.messages.tool_runner(
        model=GIVEN["agent"], messages=GIVEN["messages"], max_tokens=64, tools=[weather]
    )
    last = runner.until_done().content[0].text
    return [*CALLED, last]


def forced_tool() -> dict[str, str]:
    tool = {"name": "route", "input_schema": GIVEN["schema"]}
    said = client.messages.create(
        **ASKED | {"max_tokens": 60}, tools=[tool], tool_choice={"type": "tool", "name": "route"}
    )
    (call,) = said.content
    return call.input


def too_long() -> None:
    client.messages.create(**ASKED | {"messages": [{"role": "user", "content": GIVEN["long"]}]})


def unknown() -> None:
    client.messages.create(**ASKED | {"model": "nowhere"})


play(chat, stream, schema, tools, forced_tool, too_long, unknown)
