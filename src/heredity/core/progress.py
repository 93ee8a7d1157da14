"""The progress of a piece of work: one event, the meter that counts, and the display that shows it.

Every function here that takes long accepts a `Watch`, which is called with a `Progress`; a `Display` is one.

Promises: a meter calls its watch at most ten times a second, and once at the end of a step. A display
writes to stderr only and always shows the first and last state of a step. It loads rich when it is made.
Leaves to others: doing the work.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal, NamedTuple, Self

from heredity.core.sanitize import shorten

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

EVERY_SECONDS = 0.1
WINDOW_SECONDS = 30.0  # the rate is that of the last half minute: models differ in speed
ENOUGH = 10  # items done before the time left is estimated
_LINE_SECONDS = 10.0  # between plain lines
_WIDE = 104  # columns that a bar needs beside a name and the words
_PIPED_WIDTH = 120  # of a file or a CI log, which has no width of its own
_VERBS = {"ask": "asking", "judge": "judging", "estimate": "estimating"}

Unit = Literal["trials", "answers", "tokens", "bytes"]


class Progress(NamedTuple):
    """The progress of a step. `n_done` includes what earlier runs did; `per_second` is recent."""

    step: str  # "ask", "judge", "estimate"; "train", "read" (a teacher's pass); "download"
    model: str  # what the step is about: the model being asked, the file being fetched; "" if nothing
    n_done: int
    n_total: int  # 0: not known
    n_errors: int = 0
    n_cached: int = 0
    per_second: float = 0.0  # of `unit`; 0.0: not known
    seconds_left: float | None = None  # None: not known yet
    unit: Unit = "trials"
    loss: float | None = None  # of a training's last step


Watch = Callable[[Progress], None]


class Meter:
    """Counts trials and calls the watch."""

    def __init__(self, watch: Watch | None, step: str, n_total: int) -> None:
        self._watch, self._step, self._n_total = watch, step, n_total
        self._model = ""
        self._n_done = self._n_errors = self._n_cached = 0
        self._last = 0.0
        self._recent: deque[tuple[float, int]] = deque()

    def had(self, is_error: bool = False, is_cached: bool = False) -> None:
        """Count one that an earlier run did."""
        self._n_done += 1
        self._n_errors += is_error
        self._n_cached += is_cached

    def of(self, model: str) -> None:
        """Count for this model from now on; the rate starts again."""
        self._model = model
        self._recent.clear()
        self._report(time.monotonic())

    def tick(self, is_error: bool = False, is_cached: bool = False) -> None:
        """Count one that was done now."""
        self.had(is_error, is_cached)
        if self._watch is not None:
            now = time.monotonic()
            if now - self._last >= EVERY_SECONDS:
                self._report(now)

    def spare(self, n: int) -> None:
        """Take `n` off the total: they are not needed."""
        self._n_total -= n

    def close(self) -> None:
        """Report the end of the step."""
        self._report(time.monotonic())

    def _report(self, now: float) -> None:
        if self._watch is None:
            return
        self._last = now
        self._recent.append((now, self._n_done))
        while len(self._recent) > 2 and now - self._recent[0][0] > WINDOW_SECONDS:
            self._recent.popleft()
        then, n_then = self._recent[0]
        n_recent = self._n_done - n_then
        rate = n_recent / (now - then) if now > then else 0.0
        # The first answers come late and together: a rate from a few of them would promise hours.
        left = (self._n_total - self._n_done) / rate if n_recent >= ENOUGH else None
        self._watch(
            Progress(
                self._step,
                self._model,
                self._n_done,
                self._n_total,
                self._n_errors,
                self._n_cached,
                rate,
                left,
            )
        )


# --- shown ---


class Display:
    """A line on stderr that shows the progress of a step; the lines of finished steps stay above it.

    It is a `Watch`: pass it wherever one is taken. On a terminal it is a live bar, elsewhere a plain line
    every ten seconds.

        with h.Display() as display:
            child = store.derive(h.recipe("lora", data=data, watch=display.training("lora")), [parent])
            h.Study([parent, child], application, "core").run(display)
    """

    def __init__(self, screen: Console | None = None) -> None:
        self.screen = screen or console(sys.stderr)
        self._bar = _bar(self.screen) if self.screen.is_terminal else None
        self._task = None if self._bar is None else self._bar.add_task("", total=None, visible=False)
        self._step = self._line = self._printed = ""
        self._printed_at = 0.0
        self._bytes = _ByteRate()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show an event."""
        if progress.unit == "bytes":
            words, step = self._bytes.words(progress), progress.model
        elif progress.unit == "tokens":
            words, step = _training_words(progress), progress.model or progress.step
        else:
            words = trial_words(progress)
            step = f"{_VERBS.get(progress.step, progress.step)} {progress.model}".rstrip()
        self.show(step, progress.n_done, progress.n_total, words)

    def show(self, step: str, done: int, total: int, words: str) -> None:
        """Show the progress of `step`. A new step leaves the last line of the one before on the screen."""
        if is_new := step != self._step:
            self._finish()
            self._step = step
        self._line = f"{shorten(step, 60)}  {words}"
        if self._bar is not None and self._task is not None:
            room = self.screen.width - (76 if self.screen.width >= _WIDE else 46)
            what = shorten(step, max(16, min(44, room)))
            self._bar.update(
                self._task, completed=done, total=total or None, description=what, words=words, visible=True
            )
        elif is_new or time.monotonic() - self._printed_at >= _LINE_SECONDS:
            self._print()

    def training(self, title: str) -> Watch:
        """The `watch` of a recipe: its events under this title."""

        def show(progress: Progress) -> None:
            is_teacher = progress.step == "read"
            self(progress._replace(model=f"{title}: the teacher reads" if is_teacher else title))

        return show

    def trials(self) -> Watch:
        """The `progress` of a study: this display."""
        return self

    def _finish(self) -> None:
        if self._line != self._printed:
            self._print()

    def _print(self) -> None:
        self.screen.print(self._line, soft_wrap=True)
        self._printed, self._printed_at = self._line, time.monotonic()


def trial_words(progress: Progress) -> str:
    """The line of a step, such as `312/1,200  26%  2.1/s`, then the time left and the errors."""
    if progress.step == "estimate":
        return "done" if progress.n_done else ""
    parts = [f"{progress.n_done:,}/{progress.n_total:,}"]
    if progress.unit == "answers":
        return parts[0]
    if progress.n_total:
        parts.append(f"{100 * progress.n_done // progress.n_total}%")
    if progress.n_done < progress.n_total:
        if progress.per_second:
            parts.append(f"{progress.per_second:,.{_digits(progress.per_second)}f}/s")
        if progress.seconds_left is not None:
            parts.append(f"{clock(progress.seconds_left)} left")
    if progress.n_cached:
        parts.append(f"{progress.n_cached:,} cached")
    if progress.n_errors:
        parts.append(f"{progress.n_errors:,} error{'s' if progress.n_errors > 1 else ''}")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """`47 s`, `3:07`, `1:02:09`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def size(n_bytes: int) -> str:
    """Bytes in decimal units, as package indexes write them."""
    amount = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError  # the last unit always returns


def console(stream: IO[str]) -> Console:
    """A console that reads no markup and highlights nothing, so that text is printed unchanged."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPED_WIDTH
    return _console_class()(file=stream, markup=False, highlight=False, emoji=False, width=width)


@cache
def _console_class() -> type[Console]:
    from rich.console import Console

    class QuietConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # `heredity.cli.main` ends it quietly; rich would exit 1: "worse"

    return QuietConsole


def _training_words(progress: Progress) -> str:
    words = f"{progress.per_second:,.0f} tokens/s  {clock(progress.seconds_left or 0.0)} left"
    return words if progress.loss is None else f"loss {progress.loss:.3f}  {words}"


class _ByteRate:
    """The rate of a download over the last half minute."""

    def __init__(self) -> None:
        self._what, self._marks = "", list[tuple[float, int]]()

    def words(self, progress: Progress) -> str:
        """`95.0 MB of 100 MB  250 kB/s  20 s left`."""
        done, total, now = progress.n_done, progress.n_total, time.monotonic()
        if progress.model != self._what or (self._marks and done < self._marks[-1][1]):
            self._what, self._marks = progress.model, []
        if not self._marks or now - self._marks[-1][0] >= 0.5:
            self._marks.append((now, done))
            while len(self._marks) > 2 and now - self._marks[1][0] > WINDOW_SECONDS:
                del self._marks[0]
        if not total:
            return size(done)
        then, was = self._marks[0]
        # What was there before this run is not part of the rate.
        rate = (done - was) / (now - then) if now - then >= 0.5 else 0.0
        words = f"{size(done)} of {size(total)}"
        if rate > 0 and done < total:
            words += f"  {size(int(rate))}/s  {clock((total - done) / rate)} left"
        return words


def _digits(rate: float) -> int:
    return 0 if rate >= 100 else 1 if rate >= 1 else 2


def _bar(screen: Console) -> Bar:
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.text import Text

    class Words(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(str(task.fields.get("words", "")), no_wrap=True)

    spinner, what = SpinnerColumn("line"), TextColumn("{task.description}", markup=False)
    if screen.width < _WIDE:  # the words hold the share; the room is for the model's name
        return Progress(spinner, what, Words(), console=screen, transient=True, refresh_per_second=5)
    bar = BarColumn(bar_width=24)
    return Progress(spinner, what, bar, Words(), console=screen, transient=True, refresh_per_second=5)
