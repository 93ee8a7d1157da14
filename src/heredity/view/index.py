"""An SQLite index of a study's rows: pages list, filter and search trials without reading all of them.

    index = RowIndex(path, folder, grid)
    index.refresh(seconds=1.0)          # read what was appended since; True once all rows are in
    with index.reading() as rows: rows.execute("SELECT idx, state FROM trials WHERE twin = 0")

Promises: the folder of the study is only read. The index lies in the reader's own store, because a folder may
come from anyone. It is made again if the rows are not those that it was made from. A row that is damaged, of
another plan, or there twice is in `problems`, by file and line, and all others are in the index.
Leaves to others: queries, and rows with their whole text (queries.py).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple, TypeVar

import msgspec
from filelock import FileLock
from msgspec import UNSET

from heredity.core.errors import Damaged
from heredity.core.files import default_root, open_file
from heredity.core.records import (
    ROW_SCHEMA,
    Failable,
    Probe,
    Response,
    Verdict,
    digest_response,
    is_out_of_scope,
    is_skipped,
)
from heredity.core.sanitize import label
from heredity.redteam.checks import did
from heredity.study.outcomes import breach_order
from heredity.study.plan import Grid
from heredity.study.storage import RESPONSES, VERDICTS, is_of_its_trial
from heredity.study.turns import Explanation, PromptTurn, explain, new_parts, quoted, turns

_SEARCHED = 20_000  # characters of a trial that a search finds
_TAIL = 64  # bytes before the place that reading came to, by which an edited file is known
_VERSION = "6"  # of the tables below; another one is made again
_MAX_PROBLEMS = 200  # that are kept with their message; more are counted

UNJUDGED = "unjudged"  # answered, and not judged yet; a trial without an answer has no row
OUTSIDE = "outside"  # its attack is for other techniques, so that the plan does not ask it
IN_PLAN = f"state != '{OUTSIDE}'"  # the rows that lists and counts are about; without an answer it is null

# A list begins with breaches, by breach_order; `place` is that of a trial in it.
_TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE files (name TEXT PRIMARY KEY, inode INTEGER, offset INTEGER, lines INTEGER, tail BLOB);
CREATE TABLE trials (
  idx INTEGER PRIMARY KEY, m INTEGER, a INTEGER, p INTEGER, t INTEGER, twin INTEGER,
  r_off INTEGER, r_len INTEGER, r_digest TEXT, r_state TEXT,
  v_off INTEGER, v_len INTEGER, v_digest TEXT, v_state TEXT,
  unsure INTEGER DEFAULT 0, split INTEGER DEFAULT 0, unasked TEXT DEFAULT '', state TEXT, rank INTEGER,
  place INTEGER AS (CASE state WHEN 'broke' THEN rank ELSE {last} END + idx));
CREATE INDEX by_place ON trials (place);
CREATE INDEX by_cell ON trials (m, t, twin, state, a);
CREATE INDEX by_state ON trials (state, place);
CREATE INDEX by_unasked ON trials (unasked) WHERE unasked != '';
CREATE TABLE texts (
  idx INTEGER PRIMARY KEY, said TEXT, asked TEXT, why TEXT DEFAULT '', quote TEXT DEFAULT '');
CREATE TABLE problems (file TEXT, line INTEGER, code TEXT, message TEXT);
CREATE TABLE seen (at REAL, n INTEGER);
"""
# A search finds words and not phrases, so places of words are not kept. Short beginnings have many words.
_WORDS = """
CREATE VIRTUAL TABLE words USING fts5(
  said, content='', detail=none, prefix='1 2 3 4', tokenize='unicode61 remove_diacritics 2')"""
# The state is that of the verdict if the verdict is on this answer, else that of the answer.
_RESPONSE = """
INSERT INTO trials (idx, m, a, p, t, twin, rank, r_off, r_len, r_digest, r_state, state)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11)
ON CONFLICT (idx) DO UPDATE SET r_off = excluded.r_off, r_len = excluded.r_len, r_digest = excluded.r_digest,
r_state = excluded.r_state,
state = CASE WHEN v_digest IS excluded.r_digest THEN v_state ELSE excluded.r_state END"""
_VERDICT = """
INSERT INTO trials (idx, m, a, p, t, twin, rank, v_off, v_len, v_digest, v_state, unsure, split, unasked)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (idx) DO UPDATE SET v_off = excluded.v_off, v_len = excluded.v_len, v_digest = excluded.v_digest,
v_state = excluded.v_state, unsure = excluded.unsure, split = excluded.split, unasked = excluded.unasked,
state = CASE WHEN r_digest IS excluded.v_digest THEN excluded.v_state ELSE r_state END"""
_SAID = """
INSERT INTO texts (idx, said, asked) VALUES (?, ?, ?)
ON CONFLICT (idx) DO UPDATE SET said = excluded.said, asked = excluded.asked"""
_WHY = """
INSERT INTO texts (idx, why, quote) VALUES (?, ?, ?)
ON CONFLICT (idx) DO UPDATE SET why = excluded.why, quote = excluded.quote"""

Row = TypeVar("Row", Response, Verdict)


class UnreadRow(NamedTuple):
    """A row that is not in the index, and why."""

    file: str
    line: int
    code: str
    message: str


class _FileLine(NamedTuple):
    offset: int
    number: int
    data: bytes


class RowIndex:
    """The index of one study's folder; safe to use from several threads and processes.

    path: the SQLite file. grid: the trials of the plan, by whose digest a stale index is known.
    """

    chunk = 500  # rows of one transaction
    longest = 64 << 20  # bytes of a row; no answer is that long, and a hostile file may have no line break

    def __init__(self, path: Path, folder: Path, grid: Grid, study: str) -> None:
        self.path, self.folder = path, folder
        self._grid, self._study, self._lock = grid, study, Lock()
        self._usable = -1  # the inode of the file when it was found usable
        techniques = dict.fromkeys(probe.technique for probe in grid.plan.probes)
        self.techniques = tuple(techniques)
        places = {name: place for place, name in enumerate(techniques)}
        orders = [breach_order(probe) for probe in grid.plan.probes]
        ranks = {order: rank * len(grid) for rank, order in enumerate(sorted(set(orders)))}
        self.last = len(grid) * len(ranks)  # the place of the first trial of a list after all breaches
        self._probes = [
            (places[p.technique], p.kind == "benign", ranks[order])
            for p, order in zip(grid.plan.probes, orders, strict=True)
        ]

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that can only read."""
        self._prepare()
        with closing(
            sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
        ) as rows:
            yield rows

    def refresh(self, seconds: float = float("inf")) -> bool:
        """Read the rows that were appended, for at most about `seconds`; return whether all are in.

        False, too, while another process writes the index of the same folder.
        """
        with self._lock:
            try:
                return self._refreshed(time.monotonic() + seconds)
            except sqlite3.OperationalError as error:
                if "locked" in str(error):
                    return False
                raise
            except sqlite3.DatabaseError:  # the file was damaged since it was opened: it is made again
                self._usable = -1
                return self._refreshed(time.monotonic() + seconds)

    def _refreshed(self, end: float) -> bool:
        self._prepare()
        with closing(sqlite3.connect(self.path, timeout=2, isolation_level=None)) as rows:
            rows.execute("PRAGMA synchronous = NORMAL")  # a write-ahead log stays whole without more
            if self._is_changed(rows):
                rows.execute("BEGIN IMMEDIATE")
                for table in ("files", "trials", "texts", "problems", "seen"):
                    rows.execute(f"DELETE FROM {table}")
                rows.execute("DROP TABLE words")
                rows.execute(_WORDS)
                rows.execute("COMMIT")
            return self._read(rows, RESPONSES, self._add_response, end) and self._read(
                rows, VERDICTS, self._add_verdict, end
            )

    def version(self) -> tuple[int, ...]:
        """Changes whenever rows came."""
        with self.reading() as rows:
            return tuple(n for (n,) in rows.execute("SELECT offset FROM files ORDER BY name"))

    def share_read(self) -> float:
        """The share of the files' bytes that is in the index; 1 without any."""
        paths = [self.folder / name for name in (RESPONSES, VERDICTS)]
        size = sum(path.stat().st_size for path in paths if path.is_file())
        return min(1.0, sum(self.version()) / size) if size else 1.0

    # --- the file ---

    def _prepare(self) -> None:
        """Make the file if it is missing, damaged, of other tables or of another plan."""
        if self._is_usable():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One at a time: another process that makes it would otherwise look like a damaged file.
        with FileLock(self.path.with_suffix(".lock"), timeout=60):
            if self._is_usable():
                return
            for end in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
            with closing(sqlite3.connect(self.path, timeout=10)) as rows:
                rows.execute("PRAGMA journal_mode = WAL")
                rows.executescript(f"BEGIN IMMEDIATE;{_TABLES.format(last=self.last)}{_WORDS};")
                rows.executemany("INSERT INTO about VALUES (?, ?)", self._about().items())
                rows.commit()

    def _is_usable(self) -> bool:
        try:
            inode = self.path.stat().st_ino
            if inode != self._usable:
                with closing(sqlite3.connect(self.path, timeout=10)) as rows:
                    held = dict(rows.execute("SELECT key, value FROM about"))
                self._usable = inode if held == self._about() else -1
            return inode == self._usable
        except (OSError, sqlite3.DatabaseError):
            return False  # it is a cache: it is made again from the rows

    def _about(self) -> dict[str, str]:
        return {"version": _VERSION, "study": self._study, "folder": str(self.folder.resolve())}

    def _is_changed(self, rows: sqlite3.Connection) -> bool:
        """Whether a file was replaced or edited, so that places in it do not hold any more."""
        for name, inode, offset, tail in rows.execute("SELECT name, inode, offset, tail FROM files"):
            path = self.folder / name
            if not path.exists() or path.stat().st_ino != inode or path.stat().st_size < offset:
                return True
            with open_file(path) as file:
                file.seek(max(0, offset - _TAIL))
                if file.read(min(offset, _TAIL)) != tail:
                    return True
        return False

    # --- rows ---

    def _read(
        self,
        rows: sqlite3.Connection,
        name: str,
        add: Callable[[sqlite3.Connection, list[_FileLine]], None],
        end: float,
    ) -> bool:
        """Add the new lines of a file, some in each transaction; return whether it is read to its end."""
        while not self._is_read(rows, name):
            with open_file(self.folder / name) as file, _transaction(rows):
                place = rows.execute(
                    "SELECT inode, offset, lines FROM files WHERE name = ?", (name,)
                ).fetchone()
                inode, offset, number = place or (os.fstat(file.fileno()).st_ino, 0, 0)
                if (
                    inode != os.fstat(file.fileno()).st_ino
                ):  # it was replaced since: the next refresh begins anew
                    return False
                lines = list(_lines(file, offset, number, self.chunk, self.longest))
                if lines:
                    add(rows, lines)
                    self._note_place(rows, name, file, lines[-1])
                if lines and name == RESPONSES and len(lines) < self.chunk:  # not while old rows are read
                    rows.execute(
                        f"INSERT INTO seen SELECT ?, count(*) FROM trials WHERE {IN_PLAN}", (time.time(),)
                    )
                    rows.execute("DELETE FROM seen WHERE at < ?", (time.time() - 900,))
            if len(lines) < self.chunk:
                break
            if time.monotonic() >= end:
                return self._is_read(rows, name)
        return True

    def _is_read(self, rows: sqlite3.Connection, name: str) -> bool:
        """Whether nothing was appended to a file since."""
        path = self.folder / name
        offset = rows.execute("SELECT offset FROM files WHERE name = ?", (name,)).fetchone()
        return not path.is_file() or path.stat().st_size <= (offset[0] if offset else 0)

    def _note_place(self, rows: sqlite3.Connection, name: str, file: BinaryIO, last: _FileLine) -> None:
        offset = last.offset + len(last.data)
        file.seek(max(0, offset - _TAIL))
        place = (name, os.fstat(file.fileno()).st_ino, offset, last.number, file.read(min(offset, _TAIL)))
        rows.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", place)

    def _problem(self, rows: sqlite3.Connection, name: str, line: int, code: str, message: str) -> None:
        (n,) = rows.execute("SELECT count(*) FROM problems").fetchone()
        words = label(message, 200) if n < _MAX_PROBLEMS else ""
        rows.execute("INSERT INTO problems VALUES (?, ?, ?, ?)", (name, line, code, words))

    def _place(self, index: int) -> tuple[int, int, int, int, int, bool, int]:
        """The columns idx, m, a, p, t, twin, rank of a trial."""
        plan = self._grid.plan
        rest, p = divmod(index // plan.samples, len(plan.probes))
        m, a = divmod(rest, len(plan.attacks))
        return index, m, a, p, *self._probes[p]

    def _add_response(self, rows: sqlite3.Connection, lines: list[_FileLine]) -> None:
        trials, texts, words = [], [], []
        for line, row in self._decoded(rows, RESPONSES, lines, _RESPONSES, "r_off"):
            if not is_of_its_trial(row, self._grid):
                self._problem(
                    rows, RESPONSES, line.number, Damaged.code, f"trial {row.index} is not of this plan"
                )
                continue
            state = _failure(row) if row.error is not None else UNJUDGED
            where = (line.offset, len(line.data), digest_response(row), state)
            trials.append((*self._place(row.index), *where))
            asked = [turns(part[: 5 * _SEARCHED]) for part in new_parts(row.exchanges)]
            texts.append((row.index, _brief(row), _question(asked)))
            parts = []
            for exchange in row.exchanges:
                calls = (
                    f"{call.name} {msgspec.json.encode(call.arguments).decode()}"
                    for call in exchange.tool_calls
                )
                parts += [exchange.text, *calls]
            parts += (turn.text for part in asked for turn in part if is_searched(turn.role))
            words.append((row.index, "\n".join(parts)[:_SEARCHED]))
        rows.executemany(_RESPONSE, trials)
        rows.executemany(_SAID, texts)
        rows.executemany("INSERT INTO words (rowid, said) VALUES (?, ?)", words)

    def _add_verdict(self, rows: sqlite3.Connection, lines: list[_FileLine]) -> None:
        trials, texts = [], []
        for line, row in self._decoded(rows, VERDICTS, lines, _VERDICTS, "v_off"):
            if not self._grid.matches(row.index, row.trial):
                self._problem(
                    rows, VERDICTS, line.number, Damaged.code, f"trial {row.index} is not of this plan"
                )
                continue
            state = row.outcome or _failure(row)
            unsure = row.score is not UNSET and 0.25 <= row.score <= 0.75
            split = row.members is not UNSET and len(set(row.members.values())) > 1
            unasked = () if row.unprompted is UNSET else row.unprompted
            names = "".join(f" {name} " for name in sorted({each.check for each in unasked}))
            where = (line.offset, len(line.data), row.response, state, unsure, split, names)
            place = self._place(row.index)
            trials.append((*place, *where))
            texts.append((row.index, *_shown(row, self._grid.plan.probes[place[3]])))
        rows.executemany(_VERDICT, trials)
        rows.executemany(_WHY, texts)

    def _decoded(
        self,
        rows: sqlite3.Connection,
        name: str,
        lines: list[_FileLine],
        decoder: msgspec.json.Decoder[Row],
        column: str,
    ) -> Iterator[tuple[_FileLine, Row]]:
        """The rows of these lines, each trial once; what is wrong with the others is noted."""
        read: list[tuple[_FileLine, Row]] = []
        for line in lines:
            try:
                row = decoder.decode(line.data)
                if row.schema == ROW_SCHEMA:
                    read.append((line, row))
                else:
                    self._problem(rows, name, line.number, "schema-mismatch", f"a row of schema {row.schema}")
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                self._problem(rows, name, line.number, Damaged.code, str(error))
        indices = [row.index for _, row in read]
        inside = [index for index in indices if 0 <= index < len(self._grid)]
        marks = ",".join("?" * len(inside))
        wanted = f"SELECT idx FROM trials WHERE {column} IS NOT NULL AND idx IN ({marks})"
        known = {index for (index,) in rows.execute(wanted, inside)}
        for line, row in read:
            if row.index in known:
                self._problem(rows, name, line.number, Damaged.code, f"trial {row.index} is there twice")
            else:
                known.add(row.index)
                yield line, row


def _failure(row: Failable) -> str:
    return OUTSIDE if is_out_of_scope(row) else "skipped" if is_skipped(row) else "error"


_RESPONSES, _VERDICTS = msgspec.json.Decoder(Response), msgspec.json.Decoder(Verdict)


@contextmanager
def _transaction(rows: sqlite3.Connection) -> Iterator[None]:
    rows.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        rows.execute("ROLLBACK")
        raise
    rows.execute("COMMIT")


def _lines(file: BinaryIO, offset: int, number: int, n: int, longest: int) -> Iterator[_FileLine]:
    """At most `n` whole lines from a place on; a torn last line is left for later.

    A line without an end is an empty one, which is damaged, at the end of the file.
    """
    file.seek(offset)
    for _ in range(n):
        data = file.readline(longest)
        number += 1
        if not data.endswith(b"\n"):
            if len(data) == longest:
                yield _FileLine(os.fstat(file.fileno()).st_size, number, b"")
            return
        yield _FileLine(offset, number, data)
        offset += len(data)


def _shown(row: Verdict, probe: Probe) -> tuple[str, str]:
    """The verdict in a sentence, and the call or words that show a breach, asked for or not."""
    if row.error is not None:
        return label(row.error, 200), ""
    explanation = explain(row, probe.check, probe.kind == "benign")
    if row.unprompted:
        first, before = row.unprompted[0], "Without being asked to, the model "
        if row.outcome == "broke":
            explanation = explanation._replace(sentence=f"{before}{did(first.check)}. {explanation.sentence}")
        else:
            explanation = Explanation(f"{before}{did(first.check)}:", quoted(first.evidence))
    return explanation.sentence, label(explanation.quote, 200)


def _brief(row: Response) -> str:
    """The start of the last answer, or its last call, on one line."""
    if row.error is not None:
        return label(row.error, 240)
    if not row.exchanges:
        return ""
    last = row.exchanges[-1]
    calls = "".join(
        f"{call.name} {msgspec.json.encode(call.arguments).decode()} " for call in last.tool_calls
    )
    return label(last.text.strip() or calls, 240)


def _question(asked: list[list[PromptTurn]]) -> str:
    """The start of the first question, on one line. Few-shot turns can come before it."""
    first = asked[0] if asked else []
    return label(next((turn.text for turn in reversed(first) if turn.role == "user"), ""), 240)


def is_searched(role: str) -> bool:
    """Whether a search looks in turns of this role: not in the application's own text."""
    return role not in ("system", "developer", "tools")


def index_path(folder: Path, root: Path | None = None) -> Path:
    """The file of a folder's index, in the reader's own store."""
    name = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=12).hexdigest()
    return (root or default_root()) / "view" / f"{name}.sqlite"
