"""LlamaIndex: its model of servers that are like OpenAI's, an agent, and embeddings."""

import asyncio
from typing import Literal

import pydantic
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from play import GIVEN, play

DRAWN = GIVEN["drawn"]
WHERE = {"api_base": GIVEN["address"], "api_key": "none", "max_retries": 0, "is_chat_model": True}
model = OpenAILike(
    model=GIVEN["model"], context_window=512, max_tokens=DRAWN["max_tokens"],
    temperature=DRAWN["temperature"], additional_kwargs={"seed": DRAWN["seed"]}, **WHERE,
)  # fmt: skip
MESSAGES = [ChatMessage(**each) for each in GIVEN["messages"]]


class Ticket(pydantic.BaseModel):
    """The answer as JSON."""

    team: Literal["sales", "support"]


CALLED: list[str] = []


def weather(city: str) -> str:
    """Look up the weather of a city."""
    CALLED.append(city)
    return GIVEN["result"]


def chat() -> str:
    return model.chat(MESSAGES).message.content


def stream() -> list[str]:
    return [chunk.delta for chunk in model.stream_chat(MESSAGES) if chunk.delta]


def complete() -> str:
    by_text = OpenAILike(
        model=GIVEN["model"],
        max_tokens=DRAWN["max_tokens"],
        temperature=0,
        **WHERE | {"is_chat_model": False},
    )
    return by_text.complete(GIVEN["text"]).text


def schema() -> dict[str, str]:
    held = OpenAILike(
        model=GIVEN["model"], max_tokens=60, temperature=0, should_use_structured_outputs=True, **WHERE
    )
    return held.structured_predict(Ticket, PromptTemplate("hello")).model_dump()


def schema_by_tool() -> dict[str, str]:
    calling = OpenAILike(
        model=GIVEN["model"], max_tokens=60, temperature=0, is_function_calling_model=True, **WHERE
    )
    return calling.structured_predict(Ticket, PromptTemplate("hello")).model_dump()


def tools() -> list[str]:
    async def ask() -> str:
        where = WHERE | {"api_base": GIVEN["agent_address"]}
        calling = OpenAILike(model=GIVEN["agent"], is_function_calling_model=True, **where)
        agent = FunctionAgent(tools=[weather], llm=calling, streaming=False)
        return str(await agent.run("hello"))

    last = asyncio.run(ask())
    return [*CALLED, last]


def embeddings() -> list[list[float]]:
    encoder = OpenAILikeEmbedding(model_name=GIVEN["encoder"], api_base=GIVEN["address"], api_key="none")
    return encoder.get_text_embedding_batch(GIVEN["texts"])


def too_long() -> None:
    model.chat([ChatMessage(role="user", content=GIVEN["long"])])


def unknown() -> None:
    OpenAILike(model="nowhere", **WHERE).chat(MESSAGES)


play(chat, stream, complete, schema, schema_by_tool, tools, embeddings, too_long, unknown)
