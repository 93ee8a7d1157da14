"""The vllm engine's handling of a server program, with a stand-in that speaks vLLM's API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from heredity.core.errors import EngineFailure, Unavailable
from heredity.core.records import Decoding, Made, Message, Model, RecipeRecord, Reply, Request, Tool
from heredity.engines import AddressedRequest, vllm
from heredity.engines.vllm import NEUTRAL, cause, free_port
from tests.support.errors import raises
from tests.support.recording_listener import RecordingListener

pytestmark = pytest.mark.slow  # each starts a process

STANDIN = Path(__file__).parents[1] / "support" / "fake_vllm.py"
MODEL = Model(
    "0" * 32,
    "vllm:tiny",
    "f",
    "text",
    "x",
    "safetensors",
    (),
    RecipeRecord("engine", {"engine": "vllm"}),
    (),
    Made("", "", 0.0, {}),
)
ASKED = [Request(i, (Message("user", f"hello {i}"),)) for i in range(5)]


TEMPLATE = (
    "{% if tools %}[tools {{ tools | length }}]{% endif %}{% for m in messages %}"
    "{% if m.content == 'no' %}{{ raise_exception('never') }}{% endif %}[{{ m.role }}] {{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder, as far as this engine reads it."""
    monkeypatch.delenv(vllm.KEY, raising=False)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return tmp_path


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a program that is called as an environment's python is, and names it."""

    def make(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\nshift 2\n{script}\n")  # -m and the module
        path.chmod(0o755)
        monkeypatch.setenv(vllm.WHERE, str(path))

    return make


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def gone(pid: int) -> bool:
    for _ in range(100):
        if not is_alive(pid):
            return True
        time.sleep(0.05)
    return False


def worker_of(log: Path) -> int:
    return int(log.read_text().split("worker ")[1].split()[0])


@pytest.fixture
def standin(python: Callable[[str], None], tmp_path: Path) -> Iterator[vllm.VllmEngine]:
    python(f'exec {sys.executable} {STANDIN} "$@"')
    engine = vllm.load(MODEL, tmp_path, tmp_path / "t", start_seconds=60)
    yield engine
    engine.close()


def said(text: str, key: int = 0) -> Request:
    return Request(key, (Message("user", text),))


def test_a_server_is_started_asked_and_ended_with_its_workers(
    standin: vllm.VllmEngine, tmp_path: Path
) -> None:
    worker = worker_of(tmp_path / "t.vllm.log")
    found = {reply.key: reply for reply in standin.reply(ASKED)}
    assert found[3].text == "tiny heard [user] hello 3[assistant]" and found[3].n_tokens == 4
    assert found[3].prompt == standin.render(ASKED[3])
    assert standin.server is not None and is_alive(worker)
    pid = standin.server.pid
    standin.close()
    assert gone(pid) and gone(worker)
    with raises(EngineFailure, "engine-failure"):
        list(standin.reply(ASKED))


def test_a_server_that_ends_while_it_starts_is_told_with_its_last_words(
    python: Callable[[str], None], tmp_path: Path
) -> None:
    python("echo no such device; exit 3")
    with raises(Unavailable, "unavailable", mentions=[3, "no such device"]):
        vllm.load(MODEL, tmp_path, tmp_path / "t", start_seconds=30)


def test_a_server_that_is_never_ready_is_ended(python: Callable[[str], None], tmp_path: Path) -> None:
    python("echo worker $$; exec sleep 600")
    with raises(Unavailable, "unavailable"):
        vllm.load(MODEL, tmp_path, tmp_path / "t", start_seconds=3)
    assert gone(worker_of(tmp_path / "t.vllm.log"))


def test_without_a_vllm_it_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm.WHERE, raising=False)
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    with raises(Unavailable, "package-missing", mentions=["HEREDITY_VLLM"]):
        vllm.load(MODEL, tmp_path)


def test_a_server_that_is_up_is_used_and_left_running(
    standin: vllm.VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(vllm.WHERE, standin._client.base_url)
    with raises(Unavailable, "key-unset", mentions=["VLLM_API_KEY"]):
        vllm.load(MODEL, tmp_path)
    monkeypatch.setenv(vllm.KEY, standin._client._client.headers["authorization"].split()[1])
    second = vllm.load(MODEL, tmp_path)
    assert [reply.text for reply in second.reply(ASKED[:1])] == ["tiny heard [user] hello 0[assistant]"]
    assert second.base_at_server() is None
    second.close()
    assert standin.server is not None and is_alive(standin.server.pid)
    other = msgspec.structs.replace(MODEL, name="vllm:large")
    with raises(Unavailable, "unavailable", mentions=["large"]):
        vllm.load(other, tmp_path)


def test_where_no_server_is_up_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vllm.WHERE, f"http://127.0.0.1:{free_port()}/v1")
    with raises(Unavailable, "unavailable"):
        vllm.load(MODEL, tmp_path)


def test_options_reach_the_server_and_change_the_arithmetic(
    python: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python(f'exec {sys.executable} {STANDIN} "$@"')
    found = []
    for options in ("", " --dtype float32", " --dtype float32"):
        monkeypatch.setenv(vllm.WHERE, f"{tmp_path / 'python'}{options}")
        engine = vllm.load(MODEL, tmp_path, tmp_path / "t", start_seconds=60)
        found.append(engine.numerics)
        engine.close()
    assert found[0] == "vllm 0.1 own server" and found[1] == found[2] != found[0]


def test_what_vllm_refuses_or_breaks_off_is_an_error_row(standin: vllm.VllmEngine) -> None:
    asked = [said("LONG", 0), said("ABORT", 1), said("no", 2), said("hello", 3)]
    asked.append(msgspec.structs.replace(said("hello", 4), decoding=Decoding(100_000)))
    found = {reply.key: str(reply.error) for reply in standin.reply(asked)}
    assert found[0].startswith("context overflow: This model's maximum context length is 8 tokens")
    assert found[4].startswith("context overflow: max_tokens=100000 cannot be greater than max_model_len")
    assert "'abort'" in found[1] and "refuses these messages" in found[2] and found[3] == "None"


@pytest.mark.parametrize(
    ("word", "why"), [("DIE", ("engine-failure", ["-9"])), ("SICK", ("engine-failure", []))]
)
def test_a_server_that_is_gone_ends_the_run_without_rows_of_that(
    standin: vllm.VllmEngine, word: str, why: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "_END_SECONDS", 0.5)
    answered: list[Reply] = []

    def stream() -> Iterator[Request | None]:
        yield said("hello", 0)
        while not answered:  # on a busy machine the engine asks again before its first answer is there
            yield None
        yield from (said(word, 1), *(said("hello", k) for k in range(2, 90)))

    replies = standin.reply(stream())
    answered.append(next(replies))
    assert answered[0].error is None
    with raises(EngineFailure, *why):
        assert all(reply.error is None for reply in replies)


def test_each_of_two_servers_of_one_model_has_its_own_log_and_tells_its_own_end(
    standin: vllm.VllmEngine, tmp_path: Path
) -> None:
    list(standin.reply(ASKED))  # so that its log is the longer one
    other = vllm.load(MODEL, tmp_path, tmp_path / "t", start_seconds=60)
    try:
        with raises(EngineFailure, "engine-failure", mentions=["DIE of cold"]):
            list(other.reply([said("DIE of cold")]))
        with raises(EngineFailure, "engine-failure", mentions=["DIE of heat"]):
            list(standin.reply([said("DIE of heat")]))
    finally:
        other.close()
    logs = sorted(tmp_path.glob("*.log"))
    assert [log.name for log in logs] == ["t.vllm-2.log", "t.vllm.log"]
    cold, hot = (log.read_bytes() for log in logs)
    assert b"cold" in cold and b"heat" not in cold and b"heat" in hot and b"cold" not in hot
    assert cold.count(b"POST") == 1 and hot.count(b"POST") == len(ASKED) + 1


def test_a_log_that_no_server_writes_any_more_is_written_anew(
    standin: vllm.VllmEngine, tmp_path: Path
) -> None:
    list(standin.reply(ASKED))
    standin.close()
    with (tmp_path / "t.vllm.log").open("rb") as former:
        vllm.load(MODEL, tmp_path, tmp_path / "t", start_seconds=60).close()
        assert former.read().count(b"POST") == len(ASKED)  # one whose end is late goes on in its own file
    assert [log.name for log in tmp_path.glob("*.log")] == ["t.vllm.log"]
    assert b"POST" not in (tmp_path / "t.vllm.log").read_bytes()


def test_a_kill_of_heredity_ends_the_server_and_its_workers(
    python: Callable[[str], None], tmp_path: Path
) -> None:
    python(f'exec {sys.executable} {STANDIN} "$@"')
    script = (
        "import sys, pathlib; from tests.engines.test_vllm import MODEL, vllm\n"
        "at = pathlib.Path(sys.argv[1])\n"
        "engine = vllm.load(MODEL, at, at / 't', start_seconds=60)\n"
        "print(engine.server.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as ours:
        assert ours.stdout is not None
        server, worker = int(ours.stdout.readline()), worker_of(tmp_path / "t.vllm.log")
        assert is_alive(server) and is_alive(worker)
        os.kill(ours.pid, signal.SIGKILL)
    assert gone(server) and gone(worker)


def test_a_draw_is_by_what_stands_in_the_request_alone(standin: vllm.VllmEngine) -> None:
    request = Request(0, (Message("user", "hello"),), Decoding(9, 0.7, 0.9), 2**40 + 5)
    body = standin.body(request, standin.render(request))
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (9, 0.7, 0.9)
    assert 0 <= body["seed"] < 2**31
    # generation_config.json of many models has these, and the server would take them from there
    assert {"top_k", "repetition_penalty", "min_p"} <= NEUTRAL.keys() and not NEUTRAL.keys() & body.keys()


def test_tools_and_the_beginning_of_an_answer_stand_in_the_prompt_and_calls_are_read(
    standin: vllm.VllmEngine,
) -> None:
    call = '<tool_call>{"name": "pay", "arguments": {"to": "me"}}</tool_call>'
    request = Request(
        0, (Message("user", call),), prefill="Sure", tools=(Tool("pay", "Pays.", {"to": "who"}),)
    )
    (reply,) = standin.reply([request])
    assert reply.prompt == f"[tools 1][user] {call}[assistant]Sure"
    assert [(made.name, made.arguments) for made in reply.tool_calls] == [("pay", {"to": "me"})]


def test_a_json_schema_goes_to_the_server(standin: vllm.VllmEngine) -> None:
    request = Request(0, (Message("user", "hello"),), Decoding(json_schema='{"type": "object"}'))
    assert standin.body(request, "hello")["structured_outputs"] == {"json": '{"type": "object"}'}
    assert "cache_salt" not in standin.body(request, "hello")
    assert standin.body(AddressedRequest(0, (), caller="one"), "hello")["cache_salt"] == "one"
    assert "structured_outputs" not in standin.body(said("hello"), "hello")


def test_the_cause_of_an_end_is_told_and_not_that_there_was_one() -> None:
    log = """(EngineCore pid=7) ERROR 11-26 04:12:37 [core.py:1203] EngineCore failed to start.
(EngineCore pid=7) ERROR 11-26 04:12:37 [core.py:1203] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-26 04:12:37 [core.py:1203]   File "worker.py", line 3, in check
(EngineCore pid=7) ERROR 11-26 04:12:37 [core.py:1203] ValueError: 0.1 GiB is not enough.
(APIServer pid=6) Traceback (most recent call last):
(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.
leaked semaphore objects"""
    assert cause(log) == "EngineCore failed to start. / ValueError: 0.1 GiB is not enough."
    assert cause("usage: api_server.py [-h]\napi_server.py: error: no such option: --x\n") == (
        "api_server.py: error: no such option: --x"
    )
    assert cause("one\n\ntwo\n") == "one / two"


def test_the_parts_of_a_stream_are_the_answer(standin: vllm.VllmEngine) -> None:
    assert standin.capabilities.streamer is standin
    listener = RecordingListener(deaf=[1])
    whole = {reply.key: reply for reply in standin.reply(ASKED)}
    assert {reply.key: reply for reply in standin.stream(ASKED, listener)} == whole
    heard = {key: "".join(parts) for key, parts in listener.heard.items()}
    assert heard == {key: reply.text for key, reply in whole.items() if key != 1}
    assert len(listener.heard[0]) > 5


@pytest.mark.parametrize(("word", "why"), [("CUT", "end marker"), ("FAULT", "out of luck"), ("LONG", "8")])
def test_a_stream_without_its_end_is_an_error_row(standin: vllm.VllmEngine, word: str, why: str) -> None:
    (reply,) = standin.stream([said(f"{word} hello")], RecordingListener())
    assert (reply.stop, reply.text) == ("error", "") and why in str(reply.error)


def test_a_stream_that_is_not_wanted_ends(standin: vllm.VllmEngine) -> None:
    listener = RecordingListener(most=3)
    (reply,) = standin.stream([said("hello")], listener)
    assert (reply.stop, reply.text) == ("length", "".join(listener.heard[0])) and reply.n_tokens == 3
