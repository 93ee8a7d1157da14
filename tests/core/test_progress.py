"""Progress: on a terminal (a real pseudo-terminal), elsewhere, and in words."""

from __future__ import annotations

import io
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest

from heredity.core.progress import Meter, Progress, TimeLeft, TimeSpan, Work
from heredity.core.terminal import Display, QuietConsole, size, trial_words
from heredity.lab.adapt import clock
from heredity.study.forecast import Measured, measured_seconds
from tests.support.cli import place as place


def progress(done: int, **changes: object) -> Progress:
    whole = Progress("ask", "a-model", done, 1200, 0, 0, 2.1, TimeSpan(370, 530))
    return whole._replace(**changes)


def fetched(n_done: int, n_total: int) -> Progress:
    return Progress("download", "weights.gguf", n_done, n_total, unit="bytes")


def test_the_words_of_a_study_hold_rate_and_time_left() -> None:
    assert trial_words(progress(312)) == "312/1,200  26%  2.1/s  6 to 9 min left"
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
        "asking a-model  0/1,200  0%  2.1/s  6 to 9 min left",
        "asking a-model  1,200/1,200  100%",
        "judging  0/1,200  0%  2.1/s  6 to 9 min left",
        "judging  0/1,200  0%  2.1/s",
    ]


def test_a_training_shows_its_loss_and_the_teacher_that_reads_before_it_a_rate() -> None:
    screen = io.StringIO()
    with Display(QuietConsole(screen)) as display:
        watch = display.training("distill of it")
        watch(Progress("read", "", 3, 8, per_second=1234.5, seconds_left=TimeSpan(65, 100), unit="tokens"))
        watch(
            Progress(
                "train", "", 1, 2, per_second=600.0, seconds_left=TimeSpan(5, 9), unit="tokens", loss=0.5
            )
        )
    assert screen.getvalue().splitlines() == [
        "distill of it: the teacher reads  3/8  1,234 tokens/s  1 to 2 min left",
        "distill of it: the teacher reads  3/8  1,234 tokens/s",
        "distill of it  1/2  loss 0.500  600 tokens/s  under 1 min left",
        "distill of it  1/2  loss 0.500  600 tokens/s",
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
    monkeypatch.setattr("heredity.core.progress.time.monotonic", lambda: now[0])
    screen = io.StringIO()
    with Display(QuietConsole(screen)) as display:
        display(fetched(90_000_000, 100_000_000))  # resumed at nine tenths
        now[0] += 20.0
        display(fetched(91_000_000, 100_000_000))  # in the first minute it gives no time left
        now[0] += 60.0
        display(fetched(94_000_000, 100_000_000))
        now[0] += 120.0
        display(fetched(100_000_000, 100_000_000))
    first, *_, last = screen.getvalue().splitlines()
    assert (first, last) == ("weights.gguf  90.0 MB of 100 MB", "weights.gguf  100 MB of 100 MB")
    assert "weights.gguf  91.0 MB of 100 MB  50.0 kB/s" in screen.getvalue().splitlines()
    assert "weights.gguf  94.0 MB of 100 MB  50.0 kB/s  1 to 3 min left" in screen.getvalue().splitlines()


def test_the_line_of_a_step_that_is_over_has_no_time_left() -> None:
    screen = io.StringIO()
    with Display(QuietConsole(screen)) as display:
        display(progress(600))
        display(progress(600, model="another"))
    lines = screen.getvalue().splitlines()
    assert lines[1] == "asking a-model  600/1,200  50%  2.1/s" and "left" not in lines[-1]


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def middle(left: TimeLeft) -> float:
    low, high = left.estimate() or (0.0, 0.0)
    return math.sqrt(low * high)


def test_no_time_left_is_given_in_the_first_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = Clock(), list[Progress]()
    monkeypatch.setattr("heredity.core.progress.time.monotonic", clock)
    meter = Meter(seen.append, "embed", 100)
    for _ in range(99):
        clock.now += 1
        meter.tick()
    assert [each.seconds_left is None for each in seen] == [True] * 59 + [False] * 40
    assert seen[-1].per_second == pytest.approx(1.0, rel=0.01)


def test_what_earlier_runs_did_is_no_part_of_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = Clock(), list[Progress]()
    monkeypatch.setattr("heredity.core.progress.time.monotonic", clock)
    meter = Meter(seen.append, "embed", 100)
    for _ in range(50):
        meter.had()
    for _ in range(20):
        clock.now += 10
        meter.tick()
    assert seen[-1].n_done == 70 and seen[-1].per_second == pytest.approx(0.1, rel=0.05)
    assert middle(meter.left) == pytest.approx(300, rel=0.1)


def two_models(clock: Clock) -> TimeLeft:
    parts = {name: Work(100, TimeSpan(0.5, 2.0), ("ask", name)) for name in ("small", "large")}
    return TimeLeft(parts, clock)


def ask(left: TimeLeft, clock: Clock, key: str, n: int, seconds: float) -> None:
    for _ in range(n):
        left.begin(key)
        clock.now += seconds
        left.end(key)


def test_what_remains_of_a_model_is_counted_at_its_own_rate() -> None:
    """The slow model has been heard: the fast one before it counts no more."""
    clock = Clock()
    left = two_models(clock)
    ask(left, clock, "small", 100, 0.5)
    ask(left, clock, "large", 50, 8.0)
    assert middle(left) == pytest.approx(400, rel=0.2)


def test_a_model_that_has_not_begun_takes_what_was_expected_of_it() -> None:
    """On a machine that proved twice as slow as expected, the expected time of the next model grows too."""
    clock = Clock()
    left = two_models(clock)
    assert middle(left) == pytest.approx(200)
    ask(left, clock, "small", 100, 2.0)
    assert 100 < middle(left) <= 220


def test_the_range_narrows_with_what_was_seen() -> None:
    clock = Clock()
    left = TimeLeft({"small": Work(100, TimeSpan(0.5, 2.0), ("ask", "small"))}, clock)
    widths = []
    for _ in range(4):
        low, high = left.estimate() or (0.0, 0.0)
        widths.append(high / low)
        ask(left, clock, "small", 24, 1.0)
    assert widths == sorted(widths, reverse=True) and widths[-1] < 2.5 < 3 < widths[0]


def test_the_time_left_is_computed_anew_after_some_seconds_and_not_for_each_event() -> None:
    clock = Clock()
    left = two_models(clock)
    ask(left, clock, "small", 70, 1.0)
    shown = left.span()
    ask(left, clock, "small", 4, 1.0)
    assert shown is not None and left.span() is shown
    ask(left, clock, "small", 1, 1.0)
    assert left.span() == left.estimate() != shown


def test_loading_is_no_time_of_the_first_answers() -> None:
    clock = Clock()
    left = TimeLeft({"load": Work(1, TimeSpan(1, 4)), "a": Work(100, TimeSpan(0.5, 2.0), ("a",))}, clock)
    left.begin("a")  # it waits for the model
    left.only("load")
    clock.now += 500
    left.only(None)
    left.cancel("a")
    ask(left, clock, "a", 50, 1.0)
    assert left.per_second("a") == pytest.approx(1.0)


Shown = list[tuple[float, TimeSpan | None]]  # seconds so far, and the time left


def replayed(run: dict[str, Any]) -> Shown:
    """The time left in each second of a recorded run.

    A recording has the parts of the run, and events: seconds, a method of TimeLeft, a part by its place, and
    a number of items. A part has its expected seconds, or what an earlier study measured of its model.
    """
    clock, shown, work = Clock(), Shown(), dict[Hashable, Work]()
    for i, (n, expected, causes) in enumerate(run["parts"]):
        if isinstance(expected, dict):
            each = measured_seconds(Measured(*expected["measured"]), expected["n_trials"])
            expected = [expected["n_requests"] * seconds for seconds in each]
        work[i] = Work(n, TimeSpan(*expected), tuple(causes))
    clock.now = 0.0
    left = TimeLeft(work, clock)
    for at, method, *given in [*run["events"], [run["seconds"], "span"]]:
        while clock.now + 1 < at:
            clock.now += 1
            shown.append((clock.now, left.span()))
        clock.now = at
        getattr(left, method)(*given)
    return shown


def errors(shown: Shown, total: float) -> list[tuple[float, bool]]:
    """From a tenth of the run on: how wrong the middle is, and whether the range has the truth.

    A time below a minute counts as a minute, because "under 1 min" is what is shown.
    """
    found = []
    for at, span in shown:
        if span is not None and at >= total / 10:
            low, high, true = (max(60.0, seconds) for seconds in (*span, total - at))
            middle = max(60.0, math.sqrt(span.low * span.high))
            found.append((max(true / middle, middle / true), low <= true <= high))
    return found


def share_right(found: list[tuple[float, bool]]) -> float:
    return sum(factor < 1.5 or is_within for factor, is_within in found) / len(found)


@pytest.mark.parametrize(
    "name", ["one-model", "two-models", "a-new-and-a-known-model", "parent-and-children"]
)
def test_the_time_left_of_recorded_runs_is_right_within_a_factor(name: str) -> None:
    """Of two models an earlier study of few trials told too little: the second took half of its time."""
    run = json.loads((Path(__file__).parent / "recorded" / f"{name}.json").read_bytes())
    shown = replayed(run)
    wrong = errors(shown, run["seconds"])
    assert len(wrong) > 100 and share_right(wrong) >= 0.95
    assert sum(factor < 1.5 for factor, _ in wrong) >= 0.75 * len(wrong)  # of the middle alone
    assert max(factor for factor, _ in wrong) < 2.2
    late = [span for at, span in shown if span is not None and at >= run["seconds"] / 3]
    assert max(max(60.0, high) / max(60.0, low) for low, high in late) < 4


def test_a_model_between_two_batches_keeps_the_pace_of_a_batch() -> None:
    clock = Clock()
    clock.now = 0.0
    left = TimeLeft({"a": Work(128, TimeSpan(0.5, 2.0), ("ask", "model a"))}, clock)
    for _ in range(64):
        left.begin("a")
    clock.now += 64
    for _ in range(64):
        left.end("a")
    span = left.estimate()
    assert span is not None and 64 / 1.5 < math.sqrt(span.low * span.high) < 64 * 1.5


def test_items_that_took_no_time_on_a_coarse_clock_are_no_error() -> None:
    left = TimeLeft({"a": Work(4, TimeSpan(0.5, 2.0), ("ask", "model a"))}, Clock())
    left.begin("a")
    left.end("a")
    assert left.estimate() is not None


def simulated(seed: int) -> tuple[Shown, float]:
    """The time left of a random study after every tenth answer, and its seconds.

    Rates of models differ by 10, attacks take 1 to 8 answers, and a batch has 1 to 64 conversations. A step
    has a cost of its own, and one for each of them. In half of the studies the load doubles midway.
    """
    rng, clock, shown, work = random.Random(seed), Clock(), Shown(), dict[Hashable, Work]()
    clock.now, attacks = 0.0, [rng.randint(1, 8) for _ in range(rng.randint(1, 3))]
    n, machine, models = rng.randint(20, 200), rng.lognormvariate(0, 0.5), []
    for m in range(rng.randint(1, 3)):
        seconds = 0.2 * 10 ** rng.random()  # of an answer, in a full batch
        guess, width, fixed = (
            seconds * rng.lognormvariate(0, 0.4),
            2 ** rng.randint(0, 6),
            2 ** rng.uniform(1, 6),
        )
        work["load", m] = Work(1, TimeSpan(5, 30), ("load",))
        for a, turns in enumerate(attacks):
            span = TimeSpan(0.4 * guess * turns, 2.5 * guess * turns)
            work[m, a] = Work(n, span, ("ask", f"model {m}", f"attack {a}"))
        models.append((m, seconds * machine * width / (width + fixed), width, fixed, rng.uniform(3, 40)))
    work["estimate"] = Work(1, TimeSpan(2, 15), ("estimate",))
    left, n_answers = TimeLeft(work, clock), 0
    midway = rng.uniform(0.3, 0.7) * sum(each[1] for each in models) * sum(attacks) * n
    doubles = midway if rng.random() < 0.5 else math.inf
    for m, seconds, width, fixed, loading in models:
        left.only(("load", m))
        clock.now += loading
        left.only(None)
        waiting = [(m, a, i) for a in reversed(range(len(attacks))) for i in range(n)]
        ahead = dict[
            tuple[int, int, int], list[float]
        ]()  # answers of a conversation, and what its next one lacks
        while waiting or ahead:
            while waiting and len(ahead) < width:
                item = waiting.pop()
                left.begin(item[:2])
                ahead[item] = [attacks[item[1]], rng.lognormvariate(-0.08, 0.4)]
            item = min(ahead, key=lambda each: ahead[each][1])
            amount, step = ahead[item][1], seconds * (len(ahead) + fixed) * (1 + (clock.now > doubles))
            clock.now += amount * step
            for each in ahead.values():
                each[1] -= amount
            ahead[item] = [ahead[item][0] - 1, rng.lognormvariate(-0.08, 0.4)]
            if not ahead[item][0]:
                del ahead[item]
                left.end(item[:2])
            if (n_answers := n_answers + 1) % 10 == 0:
                shown.append((clock.now, left.span()))
    return shown, clock.now + rng.uniform(1, 8)


def test_the_time_left_of_random_studies_is_mostly_right() -> None:
    """A model that is fast tells little of the next one, whose own guess was wrong in its own way."""
    runs = [errors(*simulated(seed)) for seed in range(20)]
    shares = [share_right(found) for found in runs if found]
    assert len(shares) > 15 and sum(shares) / len(shares) > 0.92


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
