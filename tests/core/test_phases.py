"""Phases: their events in order, what a terminal draws of them, and the one line that others get."""

from __future__ import annotations

import io
import re
import threading
import time

import pytest

from heredity.core.progress import PREPARE, Progress, Reporter, TimeSpan, about, phase
from heredity.core.terminal import Display, QuietConsole, err, note, phase_words, wrapped, write

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def event(name: str, done: int = 0, total: int = 0, model: str = "smollm2", **changes: object) -> Progress:
    return Progress(PREPARE, model, done, total, unit="parts", phase=name)._replace(**changes)


def drawn(*events: Progress) -> list[str]:
    """The lines that a terminal of 80 columns has seen, the last one drawn for sure."""
    screen = Terminal()
    with Display(QuietConsole(screen)) as display:
        for each in events:
            display(each)
    return [line.strip() for line in re.split(r"[\r\n]+", ANSI.sub("", screen.getvalue())) if line.strip()]


@pytest.fixture
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")


def test_a_phase_is_reported_at_its_begin_and_its_end() -> None:
    seen: list[Progress] = []
    with phase(seen.append, "converting", "a-model", n_total=3, unit="tensors") as meter:
        assert [(each.phase, each.n_done, each.n_total) for each in seen] == [("converting", 0, 3)]
        assert list(meter.each("abc", str.upper)) == ["A", "B", "C"]
    assert (seen[-1].step, seen[-1].phase, seen[-1].model) == (PREPARE, "", "a-model")


@pytest.mark.parametrize("width", range(20, 60))
def test_a_wrapped_number_keeps_its_unit_its_bounds_and_its_n(width: int) -> None:
    text = "46 % (92 of 200; 95 % interval 39 to 53 %), p < 0.0001 after Holm over 2, 7.8 points at n 30."
    lines = wrapped(text, width).splitlines()
    assert " ".join(line.strip() for line in lines) == text and max(map(len, lines)) <= width
    whole = ("46 %", "92 of 200", "95 %", "39 to 53 %", "p < 0.0001", "over 2", "7.8 points", "n 30.")
    assert all(any(each in line for line in lines) for each in whole), lines


def test_a_phase_that_fails_is_over() -> None:
    seen: list[Progress] = []
    with pytest.raises(ValueError), phase(seen.append, "loading"):
        raise ValueError
    assert [each.phase for each in seen] == ["loading", ""]


def test_a_phase_without_a_watch_counts_for_nobody() -> None:
    with phase(None, "loading") as meter:
        meter.tick()


def test_a_watch_about_a_model_names_it_in_phases_that_name_none() -> None:
    seen: list[Progress] = []
    watch = about(seen.append, "mine")
    assert watch is not None
    watch(event("loading", model=""))
    watch(event("loading", model="another"))
    watch(Progress("ask", "", 0, 1))
    assert [each.model for each in seen] == ["mine", "another", ""]
    assert about(None, "mine") is None


def test_a_reporter_serves_the_thread_that_set_the_watch() -> None:
    seen: list[Progress] = []
    report = Reporter()
    report(event("loading"))  # nobody watches
    with report.to(seen.append), report.to(None):
        report(event("loading"))
        other = threading.Thread(target=report, args=(event("converting"),))
        other.start()
        other.join()
        assert report.is_watched
    report(event("writing"))
    assert [each.phase for each in seen] == ["loading"] and not report.is_watched


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (event("loading"), "loading"),
        (event("measuring widths", 2, 6), "measuring widths 3 of 6"),
        (event("measuring widths", 6, 6), "measuring widths 6 of 6"),
        (event("converting", 120, 272, unit="tensors"), "converting 120 of 272 tensors"),
        (
            event("converting", 120, 272, unit="tensors", per_second=14.2, seconds_left=TimeSpan(70, 100)),
            "converting 120 of 272 tensors  14.2/s  1 to 2 min left",
        ),
        (event("converting", 9, 9, unit="tensors", per_second=14.2), "converting 9 of 9 tensors"),
    ],
)
def test_the_words_of_a_phase(progress: Progress, words: str) -> None:
    assert phase_words(progress) == words


@pytest.mark.usefixtures("_narrow")
def test_a_terminal_shows_the_model_and_its_phase() -> None:
    lines = drawn(event("loading"), event("measuring widths", 2, 6))
    assert lines[-1].endswith("smollm2 measuring widths 3 of 6")


@pytest.mark.usefixtures("_narrow")
def test_a_phase_of_no_model_is_shown_alone() -> None:
    assert re.fullmatch(r"[-\\|/] starting", drawn(event("starting", model=""))[-1])


@pytest.mark.usefixtures("_narrow")
def test_after_an_inner_phase_a_terminal_shows_the_outer_one() -> None:
    outer, inner = event("reading the files back"), event("converting", unit="tensors", n_total=9)
    lines = drawn(outer, inner, inner._replace(n_done=4), event(""))
    assert lines[-1].endswith("smollm2 reading the files back")


@pytest.mark.usefixtures("_narrow")
def test_the_spinner_turns_on_after_a_count_that_is_full() -> None:
    counted = event("checking widths", 0, 9)
    lines = drawn(event("loading"), counted, counted._replace(n_done=9), event(""))
    assert re.fullmatch(r"[-\\|/] smollm2 loading", lines[-1])


@pytest.mark.usefixtures("_narrow")
def test_after_a_phase_a_terminal_shows_the_step_again() -> None:
    asked = Progress("ask", "smollm2", 3, 12)
    lines = drawn(asked, event("reading the shared prompt"), event(""))
    assert lines[-1].endswith("asking smollm2 3/12  25%")  # as the bar draws it
    assert "asking smollm2  3/12  25%" in lines  # that stays
    around = drawn(event("preparing"), asked, event("loading"), event(""))
    assert around[-1].endswith("asking smollm2 3/12  25%")  # a phase around a step is not shown again
    assert not any(line.startswith("smollm2") for line in lines)  # of a phase no line stays


@pytest.mark.usefixtures("_narrow")
def test_a_long_name_is_cut_so_that_no_word_of_the_phase_breaks() -> None:
    words = "converting 120 of 272 tensors  14.2/s  1 to 2 min left"
    long = event(
        "converting",
        120,
        272,
        "a-model-" * 20,
        unit="tensors",
        per_second=14.2,
        seconds_left=TimeSpan(70, 100),
    )
    lines = drawn(long)
    assert lines[-1].endswith(words) and "…" in lines[-1]
    assert max(map(len, lines)) <= 80


def plain_lines(screen: io.StringIO, n: int) -> list[str]:
    """The lines once there are so many: those of phases come from a timer."""
    deadline = time.monotonic() + 60
    while screen.getvalue().count("\n") < n:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return screen.getvalue().splitlines()


def test_without_a_terminal_each_phase_that_takes_long_is_one_line() -> None:
    screen = io.StringIO()
    with Display(QuietConsole(screen), patience=0) as display:
        for done in range(6):
            display(event("measuring widths", done, 6))
        assert plain_lines(screen, 1) == ["smollm2  measuring widths"]
        display(event(""))
        display(event("measuring widths"))
        display(event("loading", model=""))
        assert plain_lines(screen, 2)[1:] == ["loading"]
        display(Progress("ask", "smollm2", 0, 2))
    assert screen.getvalue().splitlines()[2:] == ["asking smollm2  0/2  0%"]


def test_without_a_terminal_a_phase_that_is_over_at_once_has_no_line() -> None:
    screen = io.StringIO()
    with Display(QuietConsole(screen), patience=3600) as display:
        display(event("checking files"))
        display(event("hashing"))
        timers = list(display._waiting)
        display(event(""))
        assert timers[1].finished.is_set() and not timers[0].finished.is_set()
    assert all(timer.finished.is_set() for timer in timers) and not screen.getvalue()


@pytest.mark.usefixtures("_narrow")
def test_the_live_line_is_erased_before_a_text_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, file = Terminal(), io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdout", file)
    with Display() as display, phase(display, "computing the power"):
        note("Safety: 12 probes")
        err().print("Quality: 9 questions", soft_wrap=True)
        write("the result")
    note("the end")
    seen = ANSI.sub("", screen.getvalue().replace("\r\x1b[2K", "\0"))  # the line is erased
    for text in ("Safety: 12 probes", "Quality: 9 questions"):
        assert re.search(rf"(\0|\n){text}\n", seen), seen
    assert seen.endswith("the end\n") and file.getvalue() == "the result\n"


def test_the_name_of_a_phases_model_cannot_speak_to_the_terminal() -> None:
    screen = io.StringIO()
    with Display(QuietConsole(screen), patience=0) as display:
        display(event("loading", model="\x1b[2J[bold]x"))
        (line,) = plain_lines(screen, 1)
    assert "\x1b" not in line and "[bold]x" in line
