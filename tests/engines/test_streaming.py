"""Answers told while they grow: the pieces are the answer, and one that no one wants gives its place up."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from heredity.core.records import Decoding, Message, Reply, Request
from heredity.engines.chat import GrowingAnswer, StopTexts
from heredity.engines.torch.engine import TorchEngine, open_folder
from tests.support.recording_listener import RecordingListener
from tests.support.tiny_models import make_model


def questions(n: int, n_tokens: int = 24, temperature: float = 1.5) -> list[Request]:
    decoding = Decoding(n_tokens, temperature)
    return [Request(i, (Message("user", f"the fox {i}"),), decoding, seed=i) for i in range(n)]


def streamed(engine: TorchEngine, listener: RecordingListener, requests: list[Request]) -> dict[int, Reply]:
    return {reply.key: reply for reply in engine.stream(requests, listener)}


def test_pieces_are_the_answer_of_every_kind_of_model(any_kind: Path) -> None:
    engine, listener = open_folder(any_kind, dtype="float32"), RecordingListener()
    alone = {reply.key: reply for reply in engine.reply(questions(6))}
    assert streamed(engine, listener, questions(6)) == alone
    assert {key: "".join(told) for key, told in listener.heard.items()} == {
        k: r.text for k, r in alone.items()
    }
    assert max(map(len, listener.heard.values())) > 6  # they came one by one


def test_a_base_is_not_heard_to_speak_for_the_user(tmp_path: Path) -> None:
    engine, listener = (
        open_folder(make_model(tmp_path / "base", "llama", None), dtype="float32"),
        RecordingListener(),
    )
    said = streamed(engine, listener, questions(8, 64))
    assert {key: "".join(told) for key, told in listener.heard.items()} == {
        k: r.text for k, r in said.items()
    }


def test_who_does_not_listen_is_told_nothing_and_answered_the_same(tiny_llama: Path) -> None:
    engine, listener = open_folder(tiny_llama, dtype="float32"), RecordingListener(deaf=[1])
    assert streamed(engine, listener, questions(3)) == {r.key: r for r in engine.reply(questions(3))}
    assert set(listener.heard) == {0, 2}


def test_an_answer_that_is_wanted_no_more_ends_at_once(tiny_llama: Path) -> None:
    engine = open_folder(tiny_llama, dtype="float32")
    said = streamed(engine, RecordingListener(most=3), questions(1, 200))
    assert said[0].stop == "length" and 3 <= len(said[0].tokens) < 12


def test_a_prompt_whose_caller_has_gone_is_not_read(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_folder(tiny_llama, dtype="float32")
    monkeypatch.setattr(engine.decoder, "prefill", None)
    said = streamed(engine, RecordingListener(most=0), questions(3))
    assert {key: reply.tokens for key, reply in said.items()} == {0: (), 1: (), 2: ()}


def test_characters_of_several_tokens_come_whole() -> None:
    """Bytes as tokens, as a byte-level tokenizer has them of what it knows no word for."""
    raw = "naïve — 漢字 🙂!".encode()
    spoken = GrowingAnswer(lambda tokens: bytes(tokens).decode(errors="replace"), "")
    pieces = [spoken.grow(list(raw[: n + 1])) for n in range(len(raw))]
    assert "".join(pieces) == raw.decode() and "\ufffd" not in "".join(pieces)


LETTERS = "abc|\n"
ENDS = st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3)


def cut(text: str, ends: list[str]) -> str:
    """A text up to the end that is whole first."""
    for n in range(len(text) + 1):
        if found := [end for end in ends if text[:n].endswith(end)]:
            return text[: n - max(map(len, found))]
    return text


@given(st.text(LETTERS, max_size=40), ENDS, st.data())
def test_an_end_is_found_wherever_pieces_are_cut(text: str, ends: list[str], data: st.DataObject) -> None:
    found, told, left = StopTexts(ends), "", text
    while left:
        n = data.draw(st.integers(1, len(left)))
        told += found.feed(left[:n])
        assert cut(text, ends).startswith(told)  # nothing is told that is not of the answer
        left = left[n:]
    assert found.is_over == any(end in text for end in ends)
    assert told + found.rest() == cut(text, ends)


@pytest.mark.parametrize("pieces", [["xab|c"], ["xa", "b|c"], ["x", "a", "b", "|", "c"]])
def test_of_two_ends_the_one_that_is_whole_first_counts(pieces: list[str]) -> None:
    ends = StopTexts(["ab|c", "b"])
    assert "".join(map(ends.feed, pieces)) + ends.rest() == "xa"


def test_most_is_told_at_once() -> None:
    """What cannot be the beginning of an end is not held back."""
    ends, stream = StopTexts(["\nUser:"]), random.Random(1)
    text = "".join(stream.choices("ab ", k=200))
    assert ends.feed(text) == text
    assert ends.feed("\nUse") == "" and ends.feed("d") == "\nUsed"
