"""LangChain: its models of OpenAI's API, an agent, and embeddings."""

from typing import Literal

import pydantic
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from play import GIVEN, play

WHERE = {"base_url": GIVEN["address"], "api_key": "none", "max_retries": 0}
model = ChatOpenAI(model=GIVEN["model"], **WHERE, **GIVEN["drawn"])
short = ChatOpenAI(model=GIVEN["model"], max_tokens=60, **WHERE)


class Ticket(pydantic.BaseModel):
    """The answer as JSON."""

    team: Literal["sales", "support"]


CALLED: list[str] = []


@tool
def weather(city: str) -> str:
    """Look up the weather of a city."""
    CALLED.append(city)
    return GIVEN["result"]


def chat() -> str:
    return model.invoke(GIVEN["messages"]).content


def stream() -> list[str]:
    return [chunk.content for chunk in model.stream(GIVEN["messages"]) if chunk.content]


def schema() -> dict[str, str]:
    return short.with_structured_output(Ticket).invoke(GIVEN["messages"]).model_dump()


def schema_by_tool() -> dict[str, str]:
    form = short.with_structured_output(Ticket, method="function_calling")
    return form.invoke(GIVEN["messages"]).model_dump()


def tools() -> list[str]:
    where = WHERE | {"base_url": GIVEN["agent_address"]}
    agent = create_agent(ChatOpenAI(model=GIVEN["agent"], **where), [weather])
    last = agent.invoke({"messages": GIVEN["messages"]})["messages"][-1]
    return [*CALLED, last.content]


def responses() -> str:
    by_items = ChatOpenAI(
        model=GIVEN["model"], use_responses_api=True, max_tokens=GIVEN["drawn"]["max_tokens"], **WHERE
    )
    return by_items.invoke(GIVEN["messages"]).text


def embeddings() -> list[list[float]]:
    encoder = OpenAIEmbeddings(model=GIVEN["encoder"], check_embedding_ctx_length=False, **WHERE)
    return encoder.embed_documents(GIVEN["texts"])


def too_long() -> None:
    model.invoke(GIVEN["long"])


def unknown() -> None:
    ChatOpenAI(model="nowhere", **WHERE).invoke("hello")


play(chat, stream, schema, schema_by_tool, tools, responses, embeddings, too_long, unknown)
