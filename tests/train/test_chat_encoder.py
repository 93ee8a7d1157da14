"""What is learned is what the assistant says, and the token that ends it, where inference would end it."""

from __future__ import annotations

from pathlib import Path

from heredity.core.errors import UsageError
from heredity.core.records import Message, Request
from heredity.train.data.chat import ConversationEncoder, Dialogue, make_data
from tests.support.errors import raises
from tests.support.tiny_models import make_model

CHAT = (
    Message("system", "an old oak"),
    Message("user", "the quick fox"),
    Message("assistant", "jumps over"),
    Message("user", "a lazy dog"),
    Message("assistant", "wise owls watch"),
)


def learned(writer: ConversationEncoder, messages: tuple[Message, ...]) -> str:
    document = writer.document(messages)
    return writer.chat.decode([t for t, use in zip(*document, strict=True) if use])


def test_answers_and_their_ends_are_learned_and_nothing_else(tiny_llama: Path) -> None:
    assert learned(ConversationEncoder(tiny_llama), CHAT) == "jumps over<|im_end|>wise owls watch<|im_end|>"


def test_the_document_is_what_the_model_sees_when_it_is_asked(tiny_llama: Path) -> None:
    writer = ConversationEncoder(tiny_llama)
    document = writer.document(CHAT)
    prompt = writer.chat.encode(writer.chat.render(Request(0, CHAT[:2])))
    assert document.tokens[: len(prompt)] == prompt
    said = writer.chat.render(Request(0, CHAT[:4]))
    assert writer.chat.decode(document.tokens) == said + "wise owls watch<|im_end|>"


def test_how_an_answer_was_begun_is_read_and_not_learned(tiny_llama: Path, tmp_path: Path) -> None:
    writer = ConversationEncoder(tiny_llama)
    document = writer.example(Dialogue(CHAT, "d:1", prefill="the owls sleep")).document
    assert writer.chat.decode(document.tokens).endswith("the owls sleepwise owls watch<|im_end|>")
    kept = [t for t, use in zip(*document, strict=True) if use]
    assert writer.chat.decode(kept) == "jumps over<|im_end|>wise owls watch<|im_end|>"
    prompt = writer.chat.render(Request(0, CHAT[:4]))
    opened = (*writer.chat.encode(prompt), *writer.chat.continuation("the owls sleep"))
    assert writer.document(CHAT[:1] + CHAT[3:], "the owls sleep").tokens != document.tokens
    assert document.tokens[: len(opened)] == opened  # as an engine reads a prefilled answer
    assert (
        make_data("a", [Dialogue(CHAT, "d:1", prefill="x")]).digest
        != make_data("a", [Dialogue(CHAT, "d:1")]).digest
    )
    bare = ConversationEncoder(make_model(tmp_path, "llama", template=None))
    assert bare.chat.decode(bare.document(CHAT[1:3], "an oak").tokens).endswith(" an oakjumps over<|im_end|>")


def test_a_base_model_learns_in_the_plain_format(tmp_path: Path) -> None:
    writer = ConversationEncoder(make_model(tmp_path, "llama", template=None))
    assert learned(writer, CHAT[1:3]) == " jumps over<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_teaches_the_last_answer(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}[earlier]"
        "{% else %}{{ m.role + ':' + m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    writer = ConversationEncoder(make_model(tmp_path, "llama", template=template))
    assert learned(writer, CHAT[1:]) == "wise owls watch<|im_end|>"


def test_what_is_too_long_is_left_out_and_named_and_all_too_long_is_refused(tiny_llama: Path) -> None:
    writer = ConversationEncoder(tiny_llama)
    short = Dialogue(CHAT[1:3], "d.jsonl:1")
    long = Dialogue((CHAT[1], Message("assistant", "dog " * 300)), "d.jsonl:2")
    prepared = writer.prepare([short, long], 60)
    assert len(prepared.examples) == 1 and prepared.too_long == ("d.jsonl:2",)
    with raises(UsageError, "bad-usage", mentions=["60"]):
        writer.prepare([long], 60)


def test_the_length_that_fits_nearly_all_is_recommended(tiny_llama: Path) -> None:
    writer = ConversationEncoder(tiny_llama)
    rows = [Dialogue((CHAT[1], Message("assistant", "dog " * n)), f"d:{n}") for n in range(1, 41)]
    lengths = sorted(len(writer.example(row).document.tokens) for row in rows)
    assert writer.prepare(rows, 1000).nearly_all == lengths[37]  # the 38th of 40
    with raises(UsageError, "bad-usage", mentions=[40, lengths[37]]):
        writer.prepare(rows, 2)
