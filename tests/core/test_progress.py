"""Progress: on a terminal (a real pseudo-terminal), elsewhere, and in words."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from heredity.core.progress import Meter, Progress
from heredity.core.terminal import Display, QuietConsole, clock, size, trial_words
from tests.support.cli import place as place


def progress(done: int, **changes: object) -> Progress:
    whole = Progress("ask", "a-model", done, 1200, 0, 0, 2.1, 422.0)
    return whole._replace(**changes)


def fetched(n_done: int, n_total: int) -> Progress:
    return Progress("download", "weights.gguf", n_done, n_total, unit="bytes")


def test_the_words_of_a_study_hold_rate_and_time_left() -> None:
    assert trial_words(progress(312)) == "312/1,200  26%  2.1/s  7:02 left"
    assert trial_words(progress(312, n_errors=1, n_cached=9)).endswith("left  9 cached  1 error")


def test_a_finished_step_has_no_rate_and_no_time_left() -> None:
    assert trial_words(progress(1200)) == "1,200/1,200  100%"


def test_before_the_first_answer_there_is_no_time_left_to_say() -> None:
    assert trial_words(progress(0, per_second=0.0, seconds_left=None)) == "0/1,200  0%"


def test_without_a_terminal_every_step_is_said_at_its_start_and_its_end() -> None:
    screen = io.StringIO()
    with Display(QuietConsole(screen)) as display:
        watch = display.trials()
        for done in range(0, 1201, 100):
            watch(progress(done))
        watch(progress(0, step="judge", model=""))
    assert screen.getvalue().splitlines() == [
        "asking a-model  0/1,200  0%  2.1/s  7:02 left",
        "asking a-model  1,200/1,200  100%",
        "judging  0/1,200  0%  2.1/s  7:02 left",
    ]


def test_a_training_shows_its_loss_and_the_teacher_that_reads_before_it_a_rate() -> None:
    screen = io.StringIO()
    with Display(QuietConsole(screen)) as display:
        watch = display.training("distill of it")
        watch(Progress("read", "", 3, 8, per_second=1234.5, seconds_left=65.0, unit="tokens"))
        watch(Progress("train", "", 1, 2, per_second=600.0, seconds_left=9.0, unit="tokens", loss=0.5))
    assert screen.getvalue().splitlines() == [
        "distill of it: the teacher reads  3/8  1,234 tokens/s  1:05 left",
        "distill of it  1/2  loss 0.500  600 tokens/s  9 s left",
    ]


def test_before_its_first_step_a_training_shows_their_number() -> None:
    screen = io.StringIO()
    with Display(QuietConsole(screen)) as display:
        display.training("lora of it")(Progress("train", "", 0, 40, unit="tokens"))
    assert screen.getvalue() == "lora of it  0/40\n"


def test_a_download_of_unknown_length_shows_what_came() -> None:
    screen = io.StringIO()
    with Display(QuietConsole(screen)) as display:
        display(fetched(1_500_000, 0))
    assert screen.getvalue() == "weights.gguf  1.5 MB\n"


def test_what_was_there_before_is_no_part_of_a_downloads_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("heredity.core.terminal.time.monotonic", lambda: now[0])
    screen = io.StringIO()
    with Display(QuietConsole(screen)) as display:
        display(fetched(90_000_000, 100_000_000))  # resumed at nine tenths
        now[0] += 20.0
        display(fetched(95_000_000, 100_000_000))
    assert screen.getvalue().splitlines()[-1] == "weights.gguf  95.0 MB of 100 MB  250 kB/s  20 s left"


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("heredity.core.progress.time.monotonic", lambda: self.now)

    def ticks(self, meter: Meter, n: int, seconds: float) -> None:
        for _ in range(n):
            self.now += seconds
            meter.tick()


def test_a_rate_counts_from_the_first_item_and_not_from_the_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = Clock(monkeypatch), list[Progress]()
    meter = Meter(seen.append, "ask", 160)
    meter.workers(2, ())
    clock.now += 100  # they load
    meter.begin()
    clock.ticks(meter, 10, seconds=1.0)
    assert (seen[-1].per_second, seen[-1].seconds_left) == (1.0, 150.0)
    clock.ticks(meter, 10, seconds=0.5)
    meter.begin()  # of another model: the rate stays
    assert seen[-1].n_done == 20 and seen[-1].per_second == pytest.approx(20 / 15)


def test_a_few_items_give_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one batch come late and together."""
    clock, seen = Clock(monkeypatch), list[Progress]()
    meter = Meter(seen.append, "ask", 160)
    meter.begin()
    clock.ticks(meter, 9, seconds=10.0)
    assert (seen[-1].n_done, seen[-1].per_second, seen[-1].seconds_left) == (9, 0.0, None)


def test_slow_items_give_a_time_left_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are fewer than ten of them in half a minute."""
    clock, seen = Clock(monkeypatch), list[Progress]()
    meter = Meter(seen.append, "ask", 30)
    meter.begin()
    clock.ticks(meter, 5, seconds=1.0)
    clock.ticks(meter, 20, seconds=20.0)
    assert (seen[-1].per_second, seen[-1].seconds_left) == (0.05, 100.0)


def test_names_cannot_speak_to_the_terminal() -> None:
    screen = io.StringIO()
    with Display(QuietConsole(screen)) as display:
        display(progress(1, model="\x1b[2J[bold]x"))
    assert "\x1b" not in screen.getvalue()
    assert "[bold]x" in screen.getvalue()


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [(0, "0 B"), (999, "999 B"), (98_362_432, "98.4 MB"), (491_400_064, "491 MB"), (1_117_320_768, "1.1 GB")],
)
def test_bytes_in_words(n_bytes: int, words: str) -> None:
    assert size(n_bytes) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (61, "1:01"), (3599.7, "1:00:00"), (86399, "23:59:59")],
)
def test_time_in_words(seconds: float, words: str) -> None:
    assert clock(seconds) == words


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminal there")
def test_on_a_terminal_there_is_a_live_bar_that_leaves_plain_lines_behind(place: Path) -> None:
    import pty

    leader, follower = pty.openpty()
    env = {**os.environ, "HEREDITY_STORE": str(place / "store"), "COLUMNS": "80", "TERM": "xterm"}
    args = ("study", "--model", "scripted:careful", "--application", "desk.toml", "--out", "live")
    process = subprocess.Popen(
        [sys.executable, "-m", "heredity", *args, "--probes", "planted_secret"],
        cwd=place, env=env, stdout=subprocess.DEVNULL, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    shown = _drain(leader)
    assert process.wait() == 0, shown
    assert "\x1b[?25l" in shown and "\x1b[?25h" in shown  # the cursor is hidden, and comes back
    assert "asking scripted:careful" in shown and "100%" in shown


def _drain(leader: int) -> str:
    said = b""
    while True:
        try:
            block = os.read(leader, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not block:
            break
        said += block
    os.close(leader)
    return said.decode(errors="replace")
