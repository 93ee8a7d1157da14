"""A cache of responses, keyed by everything that can change an answer."""

from __future__ import annotations

import sqlite3
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from heredity.core.errors import Busy, Damaged, HeredityError
from heredity.core.files import Closable
from heredity.core.records import SCHEMA, Decoding, Reply, digest, encode


def cache_key(numerics: str, model_id: str, prompt: str, decoding: Decoding, seed: int) -> str:
    """The parts of a request that make two answers the same answer. The seed counts only where something is
    drawn."""
    drawn = seed if decoding.temperature > 0 else 0
    return digest([numerics, model_id, prompt, decoding, drawn])


class ResponseCache(Closable):
    """Answers that any study of this store already has, by `cache_key`; shared by processes (SQLite, WAL).

    A reply from the cache has `is_cached` set and the key of the request that first asked: replace the key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table = f"replies_{SCHEMA}"  # another schema is another table: never misread, never lost
        self._pending: dict[str, Reply] = {}
        self._decoder = msgspec.json.Decoder(Reply)
        self._guard = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._base = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            with self._explain():
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute("PRAGMA synchronous=NORMAL")
                columns = "(key TEXT PRIMARY KEY, reply BLOB) WITHOUT ROWID"
                self._base.execute(f"CREATE TABLE IF NOT EXISTS {self._table} {columns}")
        except BaseException:
            self._base.close()
            raise

    def get(self, key: str) -> Reply | None:
        """The answer kept under `key`, or None."""
        with self._guard, self._explain():
            if key in self._pending:
                return msgspec.structs.replace(self._pending[key], is_cached=True)
            row = self._base.execute(f"SELECT reply FROM {self._table} WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            return msgspec.structs.replace(self._decoder.decode(zlib.decompress(row[0])), is_cached=True)

    def put(self, key: str, reply: Reply) -> None:
        """Keep an answer (errors are not kept). Written in batches: `flush` makes it visible to others."""
        if reply.error is not None or reply.stop == "error":
            return
        with self._guard:
            self._pending[key] = reply
        if len(self._pending) >= 256:
            self.flush()

    def flush(self) -> None:
        """Write what is pending in one transaction."""
        with self._guard, self._explain():
            rows = [(key, zlib.compress(encode(reply), 1)) for key, reply in self._pending.items()]
            if rows:
                self._base.execute("BEGIN IMMEDIATE")
                try:
                    self._base.executemany(f"INSERT OR IGNORE INTO {self._table} VALUES (?, ?)", rows)
                    self._base.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):
                        self._base.execute("ROLLBACK")
                    raise
            self._pending.clear()

    def clear(self) -> None:
        """Forget every answer, those of other schemas too, and give their space back.

        Raises Busy while another process writes answers.
        """
        with self._guard:
            self._pending.clear()
            try:
                named = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'replies_%'"
                for (table,) in self._base.execute(named).fetchall():
                    self._base.execute(f'DELETE FROM "{table}"')
                self._base.execute("VACUUM")
                self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.OperationalError as error:
                raise Busy(f"{self.path} is in use ({error}): try again once no study runs.") from error

    def close(self) -> None:
        """Flush and let go of the file."""
        try:
            self.flush()
        finally:
            self._base.close()

    @contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, zlib.error, msgspec.DecodeError) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise HeredityError(
                    f"The disk is full: no answer fits into {self.path}. Free some space."
                ) from error
            raise Damaged(
                f"The response cache {self.path} cannot be used ({error})."
                " Delete that file: only time is lost, its answers are asked again."
            ) from error
