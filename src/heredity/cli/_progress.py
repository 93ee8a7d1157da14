"""Progress with rate and time left: a live bar on a terminal, a plain line every ten seconds elsewhere.

Promises: everything goes to stderr; a step's first and last state are always shown; a bar is gone before the
next line prints.
Leaves to others: doing the work, and counting trials (progress.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from heredity.cli._terminal import clock, err, shorten, size
from heredity.core.progress import Progress

if TYPE_CHECKING:
    from heredity.train.loop import Watched

_EVERY = 10.0  # seconds between plain lines
_WIDE = 104  # columns that a bar needs beside a name and the words
_WINDOW = 30.0  # seconds that a download's rate is taken over
_DOING = {"ask": "asking", "judge": "judging", "estimate": "estimating"}


class Display:
    """One line that says how far a step is; the lines of finished steps stay above it.

    with h.Display() as display:
        child = store.derive(h.recipe("lora", data=data, watch=display.training("lora")), [parent])
        h.Study([parent, child], application, "core").run(display.trials())
    """

    def __init__(self, screen: Console | None = None) -> None:
        self.screen = screen or err()
        self._bar = _bar(self.screen) if self.screen.is_terminal else None
        self._task = None if self._bar is None else self._bar.add_task("", total=None, visible=False)
        self._step = self._line = self._said = ""
        self._said_at = 0.0

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

    def show(self, step: str, done: int, total: int, words: str) -> None:
        """Where `step` stands. A new step leaves the last line of the one before on the screen."""
        if is_new := step != self._step:
            self._finish()
            self._step = step
        self._line = f"{shorten(step, 60)}  {words}"
        if self._bar is not None and self._task is not None:
            what = shorten(
                step, max(16, min(44, self.screen.width - (76 if self.screen.width >= _WIDE else 46)))
            )
            self._bar.update(
                self._task, completed=done, total=total or None, description=what, words=words, visible=True
            )
        elif is_new or time.monotonic() - self._said_at >= _EVERY:
            self._say()

    def training(self, title: str) -> Callable[[Watched], None]:
        """The `watch` of a recipe: loss, rate and time left; a teacher that reads first has no loss."""

        def show(at: Watched) -> None:
            words = f"{at.tokens_per_second:,.0f} tokens/s  {clock(at.seconds_left)} left"
            if at.loss is None:
                self.show(f"{title}: the teacher reads", at.step, at.n_steps, words)
            else:
                self.show(title, at.step, at.n_steps, f"loss {at.loss:.3f}  {words}")

        return show

    def trials(self) -> Callable[[Progress], None]:
        """The `progress` of a study: trials done, rate and time left."""
        return Trials(self)

    def _finish(self) -> None:
        if self._line != self._said:
            self._say()

    def _say(self) -> None:
        self.screen.print(self._line, soft_wrap=True)
        self._said, self._said_at = self._line, time.monotonic()


class Bytes:
    """A download on a display: has the shape of the library's callback (bytes done, bytes in all, what)."""

    def __init__(self, display: Display) -> None:
        self._display, self._what = display, ""
        self._marks: list[tuple[float, int]] = []

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if what != self._what or (self._marks and done < self._marks[-1][1]):
            self._what, self._marks = what, []
        if not self._marks or now - self._marks[-1][0] >= 0.5:
            self._marks.append((now, done))
            while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW:
                del self._marks[0]
        self._display.show(what, done, total, self._words(done, total, now))

    def _words(self, done: int, total: int, now: float) -> str:
        if not total:
            return size(done)
        then, was = self._marks[0]
        # What was there before this run is no part of the rate.
        rate = (done - was) / (now - then) if now - then >= 0.5 else 0.0
        words = f"{size(done)} of {size(total)}"
        if rate > 0 and done < total:
            words += f"  {size(int(rate))}/s  {clock((total - done) / rate)} left"
        return words


class Trials:
    """A study on a display: the callback of Study.run."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def __call__(self, progress: Progress) -> None:
        step = f"{_DOING.get(progress.step, progress.step)} {progress.model}".rstrip()
        self._display.show(step, progress.n_done, progress.n_total, trial_words(progress))


def trial_words(progress: Progress) -> str:
    """`312/1,200  26%  2.1/s  7:02 left  3 errors`."""
    if progress.step == "estimate":
        return "done" if progress.n_done else ""
    parts = [f"{progress.n_done:,}/{progress.n_total:,}"]
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


def _digits(rate: float) -> int:
    return 0 if rate >= 100 else 1 if rate >= 1 else 2


class _Words(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("words", "")), no_wrap=True)


def _bar(screen: Console) -> Bar:
    spinner, what = SpinnerColumn("line"), TextColumn("{task.description}", markup=False)
    if screen.width < _WIDE:  # the share is in the words; the room is for the model's name
        return Bar(spinner, what, _Words(), console=screen, transient=True, refresh_per_second=5)
    bar = BarColumn(bar_width=24)
    return Bar(spinner, what, bar, _Words(), console=screen, transient=True, refresh_per_second=5)
