"""Retrieval: an index of a folder of documents, and the passages of it that match a question.

    with searching_in(store):            # lineage.store: the one of embedding models and rerankers
        ApplicationSession(application).retrieve(question)

Promises: equal text gives equal passages in equal order. A file that cannot be read is named, left out and
counted. Importing this loads none of the libraries of the extra `retrieval`.
The digest of a Retrieval names the content of the index and of the reranker, wherever they lie. Results name
models by id, so that they are the same from any store that has these. Passages that were put into a message
can be taken out, which leaves the message from before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from heredity.core.errors import BadArgument
from heredity.core.records import Message, Record, RetrievalMethod, Retrieved

if TYPE_CHECKING:
    from heredity.application.retrieval.models import Reranking

MAX_PASSAGES = 50  # retrieved for one turn
CANDIDATES, MAX_CANDIDATES = 50, 1000  # that a reranker reads for one turn


class Retrieval(Record, frozen=True):
    """An index whose passages come before each turn of the user. `of` reads the index and fills in `hash`.

    index: the index's folder. The application's digest leaves it out and has `hash`, which names the content.
    rerank: the name of a cross-encoder of the store, which orders the best `candidates` of a search again (50
    unless given). The digest has `rerank_id` in its place, which `of` fills in.
    """

    index: str
    passages: int = 4  # for a turn, at most
    method: RetrievalMethod = "bm25"
    hash: str | UnsetType = UNSET
    rerank: str | UnsetType = UNSET
    candidates: int | UnsetType = UNSET
    rerank_id: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        _check_range("passages", self.passages, 1, MAX_PASSAGES)
        given = {"candidates": self.candidates, "rerank_id": self.rerank_id}
        if isinstance(self.rerank, UnsetType):
            if left := next((key for key, value in given.items() if value is not UNSET), None):
                raise BadArgument(
                    f"retrieval.{left} is of a reranker: name it in retrieval.rerank",
                    code="missing-key",
                    key=f"retrieval.{left}",
                )
        elif not isinstance(self.candidates, UnsetType):
            _check_range("candidates", self.candidates, self.passages, MAX_CANDIDATES)

    def of(self, folder: Path | str = "") -> Retrieval:
        """With the hash of its index, and its path, which is relative to `folder`, made absolute.

        Raises UsageError if there is no index, if it lacks the embeddings, or if `rerank` names another kind
        of model. Raises Damaged. Raises Refused if the index is stale, and NotComparable if index or
        reranker are not those of a given hash or id.
        """
        from heredity.application.retrieval.index import PassageIndex, refuse_other_hash

        index = PassageIndex.open(Path(folder) / Path(self.index).expanduser())
        index.check_method(self.method)
        if not isinstance(self.hash, UnsetType):
            refuse_other_hash(index, self.hash)
        return msgspec.structs.replace(self.identified(), index=str(index.out), hash=index.hash)

    def identified(self) -> Retrieval:
        """With the id of its reranker and the number of candidates; itself without one. Raises as `of`."""
        if isinstance(self.rerank, UnsetType):
            return self
        from heredity.application.retrieval.models import find_reranker

        wanted = "" if isinstance(self.rerank_id, UnsetType) else self.rerank_id
        model_id = find_reranker(self.rerank, wanted).record.id
        return msgspec.structs.replace(self, candidates=self._n_candidates, rerank_id=model_id)

    def search(self, text: str, planted: tuple[Retrieved, ...] = ()) -> tuple[Retrieved, ...]:
        """The passages for a text, best first. Planted ones are ranked among those of the index.

        Raises NotComparable unless index and reranker are those of `hash` and `rerank_id`.
        """
        from heredity.application.retrieval.index import index_with

        index = index_with(Path(self.index), self.read_hash, planted)
        return index.retrieved(text, self.passages, self.method, self._reranking)

    @property
    def bare(self) -> Retrieval:
        """Without the path of the index and the name of the reranker: what a digest covers."""
        name: str | UnsetType = UNSET if isinstance(self.rerank, UnsetType) else ""
        return msgspec.structs.replace(self, index="", rerank=name)

    def most_bytes(self) -> int:
        """The bytes of the longest passages that a search can find. Raises as `search` does."""
        from heredity.application.retrieval.index import opened

        sizes = sorted(len(each.text.encode()) for each in opened(Path(self.index), self.read_hash).chunks)
        return sum(sizes[-self.passages :])

    def holds(self, shown: str) -> bool:
        """Whether a text is a passage of the index as a model sees it. Raises as `search` does."""
        from heredity.application.retrieval.index import shown_texts

        return shown in shown_texts(Path(self.index), self.read_hash)

    @property
    def read_hash(self) -> str:
        """The hash of the index. Raises BadArgument if the index or the reranker was not read."""
        is_read = self.rerank is UNSET or self.rerank_id is not UNSET
        if isinstance(self.hash, UnsetType) or not is_read:
            raise BadArgument(
                "the index of the application was not read: use Application.load, or Retrieval.of"
            )
        return self.hash

    @property
    def _reranking(self) -> Reranking | None:
        if isinstance(self.rerank, UnsetType) or isinstance(self.rerank_id, UnsetType):
            return None
        from heredity.application.retrieval.models import Reranking, opened_reranker

        return Reranking(opened_reranker(self.rerank, self.rerank_id), self._n_candidates)

    @property
    def _n_candidates(self) -> int:
        return max(CANDIDATES, self.passages) if isinstance(self.candidates, UnsetType) else self.candidates


def _check_range(key: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise BadArgument(
            f"retrieval.{key} must be from {low} to {high}, not {value}", key=f"retrieval.{key}"
        )


_BEFORE, _BEHIND = "Retrieved document:\n", "\n\n"  # a passage that is shown with a turn
_ASKS = "Question: "  # before the user's text, where passages precede it


def user_message(
    text: str, retrieved: Sequence[Retrieved] = (), passage: str = "", left: Message | None = None
) -> Message:
    """A turn of the user: its text behind the passages that are shown with it.

    passage: that of a probe, which comes before those that were retrieved. left: the turn before, if it got
    no answer.
    """
    passages = [passage.strip()] if passage else []
    passages += (each.shown for each in retrieved)
    shown, data = "", list[tuple[int, int]]()
    for each in passages:
        shown += _BEFORE
        data.append((len(shown), len(shown) + len(each)))
        shown += f"{each}{_BEHIND}"
    made = Message("user", f"{shown}{_ASKS}{text}", data=tuple(data)) if shown else Message("user", text)
    return _joined(left, made)


def without_passages(message: Message, is_left_out: Callable[[str], bool]) -> Message:
    """A message of the user without some of the passages shown with it, as if they had not been found."""
    content, text, data, at = message.content, "", list[tuple[int, int]](), 0
    for spans in _turns(message):
        are_passages = _is_passage(message, spans[0][0])
        kept = [span for span in spans if not (are_passages and is_left_out(content[slice(*span)]))]
        text += content[at : spans[0][0]].removesuffix(_BEFORE)
        at = spans[-1][1] + len(_BEHIND) if are_passages else spans[-1][1]
        for low, high in kept:
            text += _BEFORE if are_passages else ""
            data.append((len(text), len(text) + high - low))
            text += content[low:high] + (_BEHIND if are_passages else "")
        if not kept:
            at += len(_ASKS)
    return msgspec.structs.replace(message, content=text + content[at:], data=tuple(data) or UNSET)


def with_passages(message: Message, retrieved: Sequence[Retrieved]) -> Message:
    """A message of the user with these passages in front, as if they had been retrieved for it."""
    if not retrieved:
        return message
    front = user_message("", retrieved)
    assert not isinstance(front.data, UnsetType)
    own = () if isinstance(message.data, UnsetType) else message.data
    before = front.content.removesuffix(_ASKS) if message.content.startswith(_BEFORE) else front.content
    moved = ((low + len(before), high + len(before)) for low, high in own)
    return msgspec.structs.replace(message, content=before + message.content, data=(*front.data, *moved))


def own_words(message: Message) -> str:
    """The words of the user in a message, without passages; "" for results of tools and other roles."""
    if message.role != "user" or isinstance(message.data, UnsetType):
        return message.content if message.role == "user" else ""
    bare = without_passages(message, lambda _: True)
    return bare.content if isinstance(bare.data, UnsetType) else ""


def _turns(message: Message) -> list[list[tuple[int, int]]]:
    """The data of a message: the passages of one turn together, and each result of a tool by itself."""
    turns: list[list[tuple[int, int]]] = []
    for low, high in () if isinstance(message.data, UnsetType) else message.data:
        between = message.content[turns[-1][-1][1] : low] if turns else ""
        if between == _BEHIND + _BEFORE and _is_passage(message, turns[-1][0][0]):
            turns[-1].append((low, high))
        else:
            turns.append([(low, high)])
    return turns


def _is_passage(message: Message, start: int) -> bool:
    return message.content[:start].endswith(_BEFORE)


def _joined(first: Message | None, second: Message) -> Message:
    """Two messages of the user as one."""
    if first is None:
        return second
    text = f"{first.content}\n\n"
    earlier = () if isinstance(first.data, UnsetType) else first.data
    later = () if isinstance(second.data, UnsetType) else second.data
    data = (*earlier, *((low + len(text), high + len(text)) for low, high in later))
    return Message("user", text + second.content, data=data or UNSET)
