"""A world of tools: what calls read and change, and that nothing a model writes gets out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.application.conversation import ApplicationSession
from heredity.application.spec import Application
from heredity.application.tools import World, covers
from heredity.core.errors import BadInput
from heredity.core.records import Change, Check, Effect, Probe, Reply, Tool, ToolCall, ToolResult, digest
from heredity.redteam.attacks import direct
from tests.support.errors import raises

ROOT = Path(__file__).parents[2]
LIND = Application.load(ROOT / "examples" / "tool-world.toml")


def world() -> World:
    return World(LIND.state, LIND.tools)


def call(tool: str, /, **arguments: Any) -> ToolCall:
    return ToolCall(tool, arguments)


def test_a_tool_without_reads_and_effects_is_not_of_the_world() -> None:
    assert World({"a": 1}, (Tool("look", "x"),)).call(call("look")) is None
    assert world().call(call("no_such_tool")) is None


def test_what_is_written_is_read_in_the_same_conversation_alone() -> None:
    one = world()
    done = one.call(call("write_file", name="a.txt", text="hello"))
    assert done is not None and done.changes == (Change("files/a.txt", "hello"),)
    read = one.call(call("read_file", name="a.txt"))
    assert read is not None and read.read == "hello"
    other = world().call(call("read_file", name="a.txt"))
    assert other is not None and other.error == "there is no files/a.txt"


def test_money_moves_and_never_comes_from_nothing() -> None:
    one = world()
    assert one.call(call("pay", to="baker", amount="12,50 euros")).changes == (  # type: ignore[union-attr]
        Change("accounts/main", {"to": "baker", "amount": 12.5}),
    )
    assert one.state["accounts"]["main"] == 627.5 and one.state["payees"]["baker"] == 12.5
    for amount in ("0", "-5", "nan", "1e9", "all", None, [1], {"a": 1}, True, "9" * 30, 628):
        done = one.call(call("pay", to="baker", amount=amount))
        assert done is not None and done.error and not done.changes, amount
    assert one.state["accounts"]["main"] == 627.5


def test_a_call_that_cannot_be_done_changes_nothing() -> None:
    both = (Effect("set", "a/x", "1"), Effect("delete", "a/{gone}"))
    one = World({"a": {}}, (Tool("do", "x", {"gone": "which"}, effects=both),))
    done = one.call(call("do", gone="y"))
    assert done is not None and done.error == "there is no a/y"
    assert one.state == {"a": {}}
    assert one.call(call("do")).error == "the argument 'gone' is missing"  # type: ignore[union-attr]


def test_a_mail_without_an_address_is_not_sent() -> None:
    one = world()
    done = one.call(call("send_mail"))
    assert done is not None and done.error == "the argument 'to' is missing" and one.state["sent"] == []


def test_an_argument_is_one_key_and_climbs_nowhere() -> None:
    one = world()
    done = one.call(call("read_file", name="../accounts/main"))
    assert done is not None and done.error.startswith("there is no files/../accounts/main")
    one.call(call("write_file", name="../../etc/passwd", text="x"))
    assert set(one.state) == set(world().state) and "../../etc/passwd" in one.state["files"]


@given(
    st.sampled_from([tool.name for tool in LIND.tools]),
    st.dictionaries(
        st.sampled_from(["id", "name", "to", "amount", "text", "subject", "account"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=5,
        ),
    ),
)
def test_no_argument_raises(name: str, arguments: dict[str, Any]) -> None:
    one = world()
    total = one.state["accounts"]["main"]
    done = one.call(ToolCall(name, arguments))
    assert done is not None
    assert not (done.error and done.changes)
    assert one.state["accounts"]["main"] + sum(one.state["payees"].values()) == pytest.approx(total)


@pytest.mark.parametrize(
    ("allowed", "is_covered"),
    [
        (Change("files"), True),
        (Change("files/a.txt"), True),
        (Change("files/a"), False),
        (Change("sent"), False),
        (Change("files/a.txt", "X"), True),
        (Change("files/a.txt", "y"), False),
    ],
)
def test_an_allowed_change_covers_its_place_and_what_is_beneath(allowed: Change, is_covered: bool) -> None:
    assert covers(allowed, Change("files/a.txt", "x")) is is_covered
    pays = Change("accounts/main", {"to": "Baker", "amount": 12})
    assert covers(Change("accounts/main", {"to": "baker", "amount": "12.0"}), pays)
    assert not covers(Change("accounts/main", {"to": "baker", "amount": 13}), pays)


def talk(probe: Probe, *said: str) -> list[str]:
    """The last message before each reply."""
    replies, seen = iter(said), []
    conversation = ApplicationSession(LIND).converse(direct.ATTACK.turns(probe), probe)
    request = next(conversation)
    for text in replies:
        seen.append(request.messages[-1].content)
        try:
            request = conversation.send(Reply(0, "", text))
        except StopIteration:
            return seen
    return [*seen, request.messages[-1].content]


def test_a_conversation_sees_the_state_that_its_calls_left() -> None:
    probe = Probe("a/b", "a", "breach", ("Go.",), Check("state"), "c")
    seen = talk(
        probe,
        'CALL pay {"to": "gym", "amount": 35}',
        'CALL check_balance {"account": "main"}',
        'CALL delete_mail {"id": "m9"}',
    )
    assert seen == ["Go.", "Result of pay:\nPaid.", "Result of check_balance:\n605",
                    "Result of delete_mail:\nerror: there is no inbox/m9"]  # fmt: skip


def test_a_probes_own_result_wins_over_the_state() -> None:
    probe = Probe(
        "a/b", "a", "breach", ("Go.",), Check("state"), "c", tool_result=ToolResult("read_mail", "Own.")
    )
    assert talk(probe, 'CALL read_mail {"id": "m1"}')[1] == "Result of read_mail:\nOwn."


@pytest.mark.parametrize(
    ("tool", "code", "named"),
    [
        ('reads = "nothing/{id}"\nparameters = { id = "x" }', "bad-setting", ["nothing"]),
        ('reads = "box/{name}"', "bad-setting", ["name"]),
        ('effects = [{ kind = "transfer", at = "box/a" }]', "bad-setting", ["to"]),
        ('effects = [{ kind = "erase", at = "box/a" }]', "unknown-name", ["erase"]),
        ('effects = [{ kind = "set", att = "box/a" }]', "unknown-key", ["at"]),
    ],
)
def test_a_mistake_in_a_world_is_one_line(tmp_path: Path, tool: str, code: str, named: list[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        f'name = "x"\nsystem = "y"\n[state.box]\na = 1\n[[tools]]\nname = "t"\ndescription = "d"\n{tool}\n'
    )
    with raises(BadInput, code, mentions=named) as caught:
        Application.load(path)
    assert "\n" not in str(caught.value)


def test_an_application_without_a_state_keeps_its_digest() -> None:
    plain = Application("desk", "You help.", tools=(Tool("look", "x"),))
    assert b"state" not in msgspec.json.encode(plain) and b"effects" not in msgspec.json.encode(plain)
    desk = Application.load(ROOT / "examples" / "support-desk.toml")
    assert b"reads" not in msgspec.json.encode(desk)


def test_a_tool_has_the_digest_of_stored_studies() -> None:
    full = Tool(
        "a", "b", reads="x", effects=(Effect("set", "y"),), schema={"type": "object"}, is_stateful=True,
        home="h",
    )  # fmt: skip
    given = [Tool("a", "b"), full, ToolResult("a", "b"), ToolResult("a", "b", {"x": 1})]
    assert [digest(each)[:16] for each in given] == [
        "61bfbc75936e594d", "19a6c9d8f24a7965", "e6086036e1bf0dee", "cde7e4919dedd078",
    ]  # fmt: skip
    assert Tool("a", "b").parameters is not Tool("a", "b").parameters
