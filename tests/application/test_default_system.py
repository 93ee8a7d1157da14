"""An application without `system`: nothing is sent, and each model's own default system prompt applies."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from heredity.application.conversation import ApplicationSession
from heredity.application.spec import Application, Passage
from heredity.core.errors import BadArgument, BadInput
from heredity.core.records import Check, Message, Probe, Request, Tool
from heredity.engines.chat import ChatCodec
from heredity.redteam import attacks, probes
from heredity.study.headline import headline
from heredity.study.spec import StudySpec
from heredity.study.storage import Prefixes
from heredity.study.study import Study
from heredity.train.data.chat import ConversationEncoder
from tests.engines.test_remote_apis import opened
from tests.support.errors import raises, run_here
from tests.support.studies import responses
from tests.support.tiny_models import CHATML, make_model

DEFAULT = "the wise owls watch"  # what the template says if nobody else does, as Qwen's does
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n"
    + DEFAULT
    + "<|im_end|>\\n' }}{% endif %}"
    + CHATML
)
UNSET, EMPTY, OWN = Application("desk"), Application("desk", ""), Application("desk", "a lazy dog")
FEW = (Message("user", "the fox"), Message("assistant", "jumps"))
ASKED = Probe("t/a", "t", "breach", ("the quick fox",), Check("marker", text="zorq"), "t", why_no_twin="none")


def first(application: Application) -> Request:
    conversation = ApplicationSession(application).converse(attacks.load("direct")(ASKED), ASKED)
    request = next(conversation)
    conversation.close()
    return request


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("owls"), "llama", TEMPLATE)


def test_without_the_key_no_system_message_is_sent_and_an_empty_one_is_sent_empty() -> None:
    assert first(UNSET).messages == (Message("user", "the quick fox"),)
    assert first(EMPTY).messages == (Message("system", ""), Message("user", "the quick fox"))
    shown = msgspec.structs.replace(UNSET, few_shot=FEW)
    assert first(shown).messages == (*FEW, Message("user", "the quick fox"))
    assert [first(each).n_shared for each in (UNSET, EMPTY, shown)] == [0, 1, 2]


def test_each_is_another_application_and_stored_ones_keep_their_digests() -> None:
    assert len({each.digest for each in (UNSET, EMPTY, OWN)}) == 3
    assert b'"system"' not in msgspec.json.encode(UNSET)
    assert OWN.digest == "ff360107b79f77df049a3a4b76480695"
    assert Application("bare").digest == "2100c4bbf9b7adb915d7d3758d105bc1"


def test_the_template_decides_when_the_model_is_asked(model: Path) -> None:
    chat = ChatCodec(model)
    seen = [chat.render(first(each)) for each in (UNSET, EMPTY, OWN)]
    assert [DEFAULT in text for text in seen] == [True, False, False]
    assert "<|im_start|>system\n<|im_end|>" in seen[1] and "a lazy dog" in seen[2]


@pytest.mark.parametrize("application", [UNSET, EMPTY, OWN], ids=["unset", "empty", "own"])
def test_training_renders_the_same_prompt_as_asking(model: Path, application: Application) -> None:
    """So a row without a system message is learned under the prompt that it is asked under."""
    writer = ConversationEncoder(model)
    asked = writer.chat.encode(writer.chat.render(first(application)))
    learned = writer.document((*first(application).messages, Message("assistant", "jumps over")))
    assert learned.tokens[: len(asked)] == asked
    assert not any(learned.is_learned[: len(asked)])
    longer = (*first(application).messages, *FEW[1:], *FEW[:1], Message("assistant", "wise owls"))
    assert writer.document(longer).tokens[: len(asked)] == asked


@pytest.mark.parametrize(
    "parts",
    [{"passages": (Passage("Returns", "Within 30 days."),)}, {"tools": (Tool("look", "Looks."),)}],
    ids=["passages", "tools"],
)
def test_what_needs_a_system_message_is_refused_without_the_key(parts: dict[str, object]) -> None:
    with raises(BadArgument, "missing-key", ["system"]):
        Application("desk", **parts)  # type: ignore[arg-type]
    Application("desk", "", **parts)  # type: ignore[arg-type]


def test_tools_in_the_models_own_format_need_none(tmp_path: Path) -> None:
    native = Application("desk", tools=(Tool("look", "Looks."),), rendering="native")
    request = first(native)
    assert [m.role for m in request.messages] == ["user"] and request.tools == native.tools
    theirs = Application("desk", tools=(Tool("look", "Looks."),), rendering="theirs")
    assert first(theirs).messages == (Message("user", "the quick fox"),)


def test_a_file_without_the_key_is_read_and_the_error_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('name = "desk"\n')
    assert Application.load(tmp_path / "a.toml") == UNSET
    (tmp_path / "b.toml").write_text('name = "desk"\n[[passages]]\ntitle = "t"\ntext = "x"\n')
    with raises(BadInput, "missing-key", ["b.toml", "system"]):
        Application.load(tmp_path / "b.toml")


def test_services_are_sent_no_system_message() -> None:
    request = first(UNSET)
    assert opened("openai").body(request)["messages"] == [{"role": "user", "content": "the quick fox"}]
    assert "system" not in opened("anthropic").body(request)
    assert not any("ystem" in key for key in opened("gemini").body(request))
    assert opened("openai").body(first(EMPTY))["messages"][0] == {"role": "system", "content": ""}


def test_a_prompt_that_is_not_the_applications_own_cannot_leak_from_it() -> None:
    leak = Probe("p/a", "p", "breach", ("Say it.",), Check("prompt_leak", n_words=5), "p", why_no_twin="none")
    kept, skipped = probes.select((leak,), UNSET)
    assert kept == () and skipped[0][0] == "p/a"


def test_a_study_stores_the_default_prompt_and_reports_it(tmp_path: Path) -> None:
    from heredity.study.report import html

    study = Study(
        StudySpec(["scripted:mixed", "scripted:careful"], UNSET, probes="harmful_request", out=tmp_path / "s")
    )
    found = study.run().estimates
    assert found.application.is_default_system
    (warning,) = [w for w in headline(found).warnings if "default system prompt" in w]
    assert warning.replace("'", "&#39;") in html.render(tmp_path / "s").replace("\u00a0", " ")
    prefixes = Prefixes(tmp_path / "s")
    shown = [prefixes.prompt(e) for row in responses(tmp_path / "s") for e in row.exchanges]
    assert shown and not any("<|system|>" in prompt for prompt in shown)
    own = (
        Study(StudySpec(["scripted:mixed"], EMPTY, probes="harmful_request", out=tmp_path / "t"))
        .run()
        .estimates
    )
    assert not own.application.is_default_system
    assert not any("default system prompt" in w for w in headline(own).warnings)


def test_the_command_says_that_no_system_prompt_is_sent(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('name = "desk"\n')
    args = ("study", "--model", "scripted:mixed", "--application", "a.toml", "--probes", "harmful_request")
    assert "own default system prompt" in run_here(*args, "--out", "s", cwd=tmp_path).stderr
    (tmp_path / "a.toml").write_text('name = "desk"\nsystem = ""\n')
    assert "own default system prompt" not in run_here(*args, "--out", "t", cwd=tmp_path).stderr
