"""Output on a terminal: consoles, tables, JSON, numbers in words, and live progress.

Promises: text is never read as markup; colour appears only on a terminal; a closed pipe ends quietly. A
display writes to stderr only and always shows the first and last state of a step.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from heredity.core import registry
from heredity.core.progress import PREPARE, ByteRate, ModelProgress, Progress, TimeSpan, Watch, time_words
from heredity.core.records import Estimate, encode
from heredity.core.sanitize import plain, plural, shorten

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_MIN_WIDTH = 60  # a narrower table would lose words, so the terminal breaks its lines instead
_NAME_WIDTH = 12  # columns that each cut column of a line_table keeps
_LINE_SECONDS = 10.0  # between plain lines
_PHASE_SECONDS = 1.0  # of a phase before its plain line
_WIDE = 104  # columns that a bar needs beside a name and the words
_ANY_WIDTH = 10_000  # in which a table is measured
_PIPED_WIDTH = 120  # of a file or a CI log, which has no width of its own
_JOINT = "\ue000"  # in place of a space that does not end a line; `plain` lets none through
_NUMBER = re.compile(
    r"(?<=\d) (?=to |of |%|points?\b|s\b|min\b|h\b|[kMG]?B\b)"
    r"|(?:(?<=\bn)|(?<=\bp)|(?<=\bof)|(?<=\bto)|(?<=\bover)|(?<=[<>~])) (?=[\d<>+\u2212])"
)
_BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_SPARKLINE_WIDTH = 60  # characters
_MAX_MODELS = 3  # on the line of a step with workers
_VERBS = {
    "search": "searching",
    "ask": "asking",
    "judge": "judging",
    "estimate": "estimating",
    "embed": "embedding",
}

# --- consoles, tables and JSON ---


class QuietConsole(Console):
    """A console that reads no markup and highlights nothing, so that text is printed unchanged."""

    def __init__(self, stream: IO[str]) -> None:
        width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPED_WIDTH
        super().__init__(file=stream, markup=False, highlight=False, emoji=False, width=width)

    def on_broken_pipe(self) -> None:
        """Let `heredity.cli.main` end quietly; rich would exit with 1, which means "worse"."""
        raise BrokenPipeError


def out() -> Console:
    """The console for results: stdout."""
    screen = QuietConsole(sys.stdout)
    screen.width = max(screen.width, _MIN_WIDTH)
    return screen


def err() -> Console:
    """The console for progress and warnings: stderr. A live line is erased before a print."""
    return _live[-1].screen if _live else QuietConsole(sys.stderr)


def note(line: str) -> None:
    """Print one plain line on stderr. A terminal gets it in lines that break between words."""
    screen, text = err(), plain(line)
    screen.print(wrapped(text, screen.width) if screen.is_terminal else text, soft_wrap=True)


def warn(line: str) -> None:
    """Print one line on stderr that begins with "warning:"."""
    note(f"warning: {line}")


def write(text: str) -> None:
    """Print text on stdout, unwrapped, so that it can be copied and piped. Untrusted text must be plain."""
    sys.stdout.write(text + "\n")


def wrapped(text: str, width: int) -> str:
    """Lines of at most `width` columns. A wrapped line continues two columns further in.

    A number stays with its unit, its bounds and the word before it: `17 to 69 %`, `n 30`.
    """
    lines = []
    for line in _NUMBER.sub(_JOINT, text).splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        parts = textwrap.wrap(
            line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        lines += parts or [""]
    return "\n".join(lines).replace(_JOINT, " ")


def write_json(value: Any) -> None:
    """Print one JSON document on stdout, with control characters escaped."""
    # ensure_ascii: a bidirectional override in a model's answer must not reach a terminal through --json.
    write(json.dumps(json.loads(encode(value)), indent=2, ensure_ascii=True))


def table(*columns: str, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """A table without frames. Columns in `right` hold numbers; those in `whole` are never wrapped."""
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        is_number = name in right
        grid.add_column(
            name,
            justify="right" if is_number else "left",
            no_wrap=is_number or name in whole,
            overflow="fold",
        )
    return grid


def print_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of untrusted texts with unbroken cells. If it is too wide, print a line for each cell."""
    screen, grid = out(), table(*head, whole=head)
    for row in rows:
        grid.add_row(*map(cell, row))
    if Measurement.get(screen, screen.options.update(max_width=_ANY_WIDTH), grid).maximum <= screen.width:
        screen.print(grid)
        return
    for row in rows:
        screen.print(cell(row[0], "bold"), soft_wrap=True)
        for name, text in zip(head[1:], row[1:], strict=True):
            write(wrapped(f"  {name}: {plain(text)}", screen.width))


def cell(text: object, style: str = "") -> Text:
    """A cell of untrusted text, made plain."""
    return Text(plain(str(text)), style=style)


def line_table(
    columns: Mapping[str, Sequence[str]],
    width: int,
    cut: Sequence[str],
    right: Sequence[str] = (),
    last_width: int = 24,
) -> Table:
    """A table whose rows are one line each, of untrusted text; the last column gets the rest of `width`.

    cut: columns whose texts lose their middle if the last one would have less than `last_width`. The last one
    loses its end.
    """
    *names, last = columns
    shown = {name: [plain(each) for each in columns[name]] for name in names}
    widths = {name: max(len(name), *map(len, values)) for name, values in shown.items()}
    room = width - 2 * len(columns)
    while room - sum(widths.values()) < last_width:
        longest = max(cut, key=lambda name: widths.get(name, 0), default="")
        if widths.get(longest, 0) <= _NAME_WIDTH:
            break
        widths[longest] -= 1
    rest = max(last_width, room - sum(widths.values()))
    grid = table(*columns, right=right, whole=list(columns))
    for place, text in enumerate(columns[last]):
        end = Text(plain(" ".join(text[: 8 * width].split())))
        end.truncate(rest, overflow="ellipsis")
        grid.add_row(*(Text(shorten_middle(shown[name][place], widths[name])) for name in names), end)
    return grid


def shorten_middle(text: str, width: int) -> str:
    """`text` in at most `width` characters, cut in its middle: names of kin differ at their ends."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def show_plugins(folder: str, as_json: bool) -> None:
    """Print the plug-ins of an open folder as a table or as JSON."""
    purposes = registry.purposes(folder)
    if as_json:
        write_json(purposes)
        return
    grid = table("name", "what it is", whole=["name"])
    for name, purpose in purposes.items():
        grid.add_row(cell(name, "bold"), cell(purpose))
    out().print(grid)


# --- numbers in words ---


def percent(estimate: Estimate) -> str:
    """An estimate as `12% [8, 17]`, or a dash if there is no data."""
    if estimate.value is None:
        return "-"
    value = f"{100 * estimate.value:.0f}%"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def size(n_bytes: int) -> str:
    """Bytes in decimal units, as package indexes write them."""
    amount = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError  # the last unit always returns


def parameters(n: float) -> str:
    """A number of parameters: `52K`, `135M`, `8.0B`, `406B`."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= factor:
            return f"{n / factor:.1f}B" if 1e9 <= n < 1e11 else f"{n / factor:.0f}{unit}"
    return f"{n:.0f}"


def sparkline(values: Sequence[float]) -> str:
    """A series as a line of block characters, each the mean of its neighbours."""
    n = min(_SPARKLINE_WIDTH, len(values))
    cuts = [i * len(values) // n for i in range(n + 1)]
    points = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(points), max(points)
    return "".join(_BLOCKS[round(7 * (value - low) / ((high - low) or 1.0))] for value in points)


# --- progress ---

_live = list["Display"]()  # that draw a line now, the innermost last


class _Drawn(NamedTuple):
    """The parts of a live line; without a text it is hidden."""

    what: str
    words: str
    done: int
    total: int


class Display:
    """A line on stderr that shows the progress of a step; the lines of finished steps stay above it.

    It is a `Watch`: pass it wherever one is taken. On a terminal it is a live bar, elsewhere a plain line
    every ten seconds. A phase takes the place of the line until it is over. Elsewhere it is one plain line,
    if it takes longer than a second.

        with h.Display() as display:
            child = store.grow(h.Lora(data, watch=display.training("lora")), [parent])
            h.Study(h.StudySpec([parent, child], application)).run(display.trials())
    """

    def __init__(self, screen: Console | None = None, patience: float = _PHASE_SECONDS) -> None:
        self.screen, self._patience = screen or QuietConsole(sys.stderr), patience
        self._bar = _bar(self.screen) if self.screen.is_terminal else None
        self._task = None if self._bar is None else self._bar.add_task("", total=None, visible=False)
        self._step = self._line = self._last = self._printed = ""
        self._phases = set[str]()  # that have their plain line
        self._waiting = list[threading.Timer]()  # for the plain lines of phases that are not over
        self._open = list[_Drawn]()  # the phases that are not over, the innermost last
        self._printed_at = 0.0
        self._drawn = _Drawn("", "", 0, 0)  # of the step, for when a phase is over
        self._bytes = ByteRate()

    @property
    def live(self) -> Watch | None:
        """This display if it draws on a terminal, else None: for phases that are not worth a plain line."""
        return None if self._bar is None else self

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            _live.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()
        self.hide()

    def hide(self) -> None:
        """Take the live line off the screen, for good. Any thread may call it."""
        self._forget_waiting(0)
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()
            if self in _live:
                _live.remove(self)

    def __call__(self, progress: Progress) -> None:
        """Show an event."""
        if progress.step == PREPARE:
            self._prepare(progress)
            return
        last = None
        if progress.unit == "bytes":
            words, step = _byte_words(progress, *self._bytes.of(progress)), progress.model
        else:
            say = _training_words if progress.unit == "tokens" else trial_words
            words, last = say(progress), say(progress._replace(seconds_left=None))
        if progress.unit == "tokens":
            step = progress.model or progress.step
        elif progress.unit != "bytes":
            workers = f"with {progress.n_workers} workers" if progress.n_workers else progress.model
            step = f"{_VERBS.get(progress.step, progress.step)} {workers}".strip()
        self.show(step, progress.n_done, progress.n_total, words, last)

    def show(self, step: str, done: int, total: int, words: str, last: str | None = None) -> None:
        """Show the progress of `step`. A new step leaves the line of the one before, in its `last` words."""
        self._open.clear()  # what is around a step is not shown again
        self._forget_waiting(0)
        if is_new := step != self._step:
            self._finish()
            self._step = step
        self._line = f"{shorten(step, 60)}  {words}"
        self._last = f"{shorten(step, 60)}  {words if last is None else last}"
        if self._bar is not None:
            room = self.screen.width - (76 if self.screen.width >= _WIDE else 46)
            self._drawn = _Drawn(shorten(step, max(16, min(44, room))), words, done, total)
            self._draw(self._drawn)
        elif is_new or time.monotonic() - self._printed_at >= _LINE_SECONDS:
            self._print()

    def _prepare(self, progress: Progress) -> None:
        """Show a phase. Once it is over, show the one around it or the step."""
        words, model = phase_words(progress), plain(progress.model)
        if not progress.phase:
            del self._open[-1:]
            self._forget_waiting(-1)
            self._draw(self._open[-1] if self._open else self._drawn)
        elif self._bar is None:
            if not progress.n_done:  # it begins
                line = f"{shorten(model, 60)}  {progress.phase}".strip()
                timer = threading.Timer(self._patience, self._name_phase, (line,))
                timer.daemon = True
                timer.start()
                self._waiting.append(timer)
        else:
            room = self.screen.width - len(words) - (32 if self.screen.width >= _WIDE else 5)
            named = (shorten(model, room), words) if model and room >= _NAME_WIDTH else (words, "")
            if progress.n_done:  # else it begins
                del self._open[-1:]
            self._open.append(_Drawn(*named, progress.n_done, progress.n_total))
            self._draw(self._open[-1])

    def _name_phase(self, line: str) -> None:
        if line not in self._phases:
            self._phases.add(line)
            self.screen.print(line, soft_wrap=True)

    def _forget_waiting(self, start: int) -> None:
        """Give up the plain lines of phases that are over: those from `start` on."""
        for timer in self._waiting[start:]:
            timer.cancel()
        del self._waiting[start:]

    def _draw(self, line: _Drawn) -> None:
        bar = self._bar  # another thread may hide it
        if bar is not None and self._task is not None:
            if not line.total:  # rich keeps the total before, and a bar that is full no longer turns
                task = bar.tasks[0]
                task.total = task.finished_time = None
            bar.update(
                self._task, completed=line.done, total=line.total or None, description=line.what,
                words=line.words, visible=bool(line.what or line.words),
            )  # fmt: skip

    def training(self, title: str) -> Watch:
        """The `watch` of a recipe: its events under this title."""

        def show(progress: Progress) -> None:
            verb = {"read": ": the teacher reads", "write": ": the teacher writes"}.get(progress.step, "")
            self(progress._replace(step="" if verb else progress.step, model=title + verb))

        return show

    def trials(self) -> Watch:
        """The `progress` of a study: this display."""
        return self

    def _finish(self) -> None:
        self._line = self._last  # a step that is over has no time left
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
        parts += _pace(progress)
    if progress.n_cached:
        parts.append(f"{progress.n_cached:,} cached")
    if progress.n_errors:
        parts.append(plural(progress.n_errors, "error"))
    parts += [f"{progress.n_starting:,} starting"] if progress.n_starting else []
    parts += [_model_words(model) for model in progress.models[:_MAX_MODELS]]
    if len(progress.models) > _MAX_MODELS:
        parts.append(f"and {plural(len(progress.models) - _MAX_MODELS, 'model')}")
    return "  ".join(parts)


def phase_words(progress: Progress) -> str:
    """`loading`, `measuring widths 3 of 6`, `converting 120 of 272 tensors  14/s  2 to 3 min left`."""
    if not progress.n_total:
        return progress.phase
    n_done, n_total = progress.n_done, progress.n_total
    if progress.unit == "parts":
        return f"{progress.phase} {min(n_done + 1, n_total):,} of {n_total:,}"  # the part under way
    words = f"{progress.phase} {n_done:,} of {n_total:,} {progress.unit}"
    return "  ".join([words, *(_pace(progress) if n_done < n_total else ())])


def _pace(progress: Progress) -> list[str]:
    """The rate and the time left, as far as they are known."""
    rate, left = progress.per_second, progress.seconds_left
    parts = [f"{rate:,.{(0 if rate >= 100 else 1 if rate >= 1 else 2)}f}/s"] if rate else []
    return parts if left is None else [*parts, f"{time_words(left)} left"]


def _model_words(model: ModelProgress) -> str:
    """`careful 120 done, 64 leased, 1 loading, 2 failed`; of a model that nobody has, its phase."""
    loading = f", {model.n_loading:,} loading" if model.n_loading else ""
    failed = f", {model.n_failed:,} failed" if model.n_failed else ""
    if model.n_loading and model.phase is not None:
        return f"{shorten(model.name, 16)} {shorten(phase_words(model.phase), 40)}{failed}"
    return f"{shorten(model.name, 24)} {model.n_done:,} done, {model.n_leased:,} leased{loading}{failed}"


def _training_words(progress: Progress) -> str:
    """Steps, loss, tokens per second and time left, as far as they are known."""
    parts = [f"{progress.n_done:,}/{progress.n_total:,}"]
    parts += [] if progress.loss is None else [f"loss {progress.loss:.3f}"]
    if progress.per_second:
        parts.append(f"{progress.per_second:,.0f} tokens/s")
    if progress.seconds_left is not None and progress.n_done < progress.n_total:
        parts.append(f"{time_words(progress.seconds_left)} left")
    return "  ".join(parts)


def _byte_words(progress: Progress, rate: float, left: TimeSpan | None) -> str:
    """`95.0 MB of 100 MB  250 kB/s  2 to 3 min left`."""
    done, total = progress.n_done, progress.n_total
    words = f"{size(done)} of {size(total)}" if total else size(done)
    if total and rate > 0 and done < total:
        words += f"  {size(int(rate))}/s" + (f"  {time_words(left)} left" if left else "")
    return words


def _bar(screen: Console) -> Bar:
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn

    class Words(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(str(task.fields.get("words", "")), no_wrap=True)

    columns: list[ProgressColumn] = [SpinnerColumn("line"), TextColumn("{task.description}", markup=False)]
    if screen.width >= _WIDE:  # else the words hold the share; the room is for the model's name
        columns.append(BarColumn(bar_width=24))
    return Progress(
        *columns, Words(), console=screen, transient=True, refresh_per_second=5,
        redirect_stdout=sys.stdout.isatty(),  # else a result would be drawn here and miss its file
    )  # fmt: skip
