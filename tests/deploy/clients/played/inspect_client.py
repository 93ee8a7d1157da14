"""inspect_ai: tasks of one sample, run as its command runs them."""

import asyncio
import json
import os
import tempfile
from typing import Literal

import pydantic
from play import GIVEN, play

os.environ |= {"HEREDITY_API_KEY": "none", "HEREDITY_BASE_URL": GIVEN["address"]}
os.environ |= {"AGENT_API_KEY": "none", "AGENT_BASE_URL": GIVEN["agent_address"]}

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import ChatMessageUser, GenerateConfig, ResponseSchema, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, ToolFunction, tool
from inspect_ai.util import json_schema

HELLO = [ChatMessageUser(content=GIVEN["messages"][0]["content"])]
NAME = f"openai-api/heredity/{GIVEN['model']}"
DRAWN = GenerateConfig(max_retries=0, **GIVEN["drawn"])
CALLED: list[str] = []


class Ticket(pydantic.BaseModel):
    """The answer as JSON."""

    team: Literal["sales", "support"]


@tool
def weather() -> Tool:
    async def execute(city: str) -> str:
        """Look up the weather of a city.

        Args:
            city: The name of a city.
        """
        CALLED.append(city)
        return GIVEN["result"]

    return execute


@tool
def route() -> Tool:
    async def execute(team: Literal["sales", "support"]) -> str:
        """Pass the customer on.

        Args:
            team: The team to pass it to.
        """
        return team

    return execute


def run(name: str, config: GenerateConfig, **how: object) -> EvalLog:
    """The log of a task of one sample."""
    dataset = [Sample(input=HELLO, target=GIVEN["last"])]
    task = Task(dataset=dataset, scorer=includes(), config=config, **how)
    (log,) = eval(task, model=name, display="none", log_dir=tempfile.mkdtemp())
    if log.error is not None:
        raise RuntimeError(log.error.message)
    return log


def chat() -> str:
    return run(NAME, DRAWN).samples[0].output.completion


def logprobs() -> list[float]:
    log = run(NAME, GenerateConfig(max_retries=0, logprobs=True, top_logprobs=2, **GIVEN["drawn"]))
    return [each.logprob for each in log.samples[0].output.choices[0].logprobs.content]


def schema() -> dict[str, str]:
    form = ResponseSchema(name="ticket", json_schema=json_schema(Ticket))
    log = run(NAME, GenerateConfig(max_tokens=60, response_schema=form))
    return json.loads(log.samples[0].output.completion)


def tools() -> list[object]:
    log = run(
        f"openai-api/agent/{GIVEN['agent']}", GenerateConfig(), solver=[use_tools(weather()), generate()]
    )
    return [*CALLED, log.samples[0].output.completion]


def score() -> float:
    log = run(
        f"openai-api/agent/{GIVEN['agent']}", GenerateConfig(), solver=[use_tools(weather()), generate()]
    )
    return log.results.scores[0].metrics["accuracy"].value


def forced_tool() -> dict[str, str]:
    model = get_model(NAME, config=GenerateConfig(max_tokens=60))
    said = asyncio.run(model.generate(HELLO, tools=[route()], tool_choice=ToolFunction("route")))
    (call,) = said.message.tool_calls
    return call.arguments


def too_long() -> str:
    model = get_model(NAME, config=DRAWN)
    return asyncio.run(model.generate(GIVEN["long"])).stop_reason


def unknown() -> None:
    asyncio.run(get_model("openai-api/heredity/nowhere", config=DRAWN).generate("hello"))


play(chat, logprobs, schema, tools, score, forced_tool, too_long, unknown)
