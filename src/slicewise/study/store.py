"""Answers in SQLite: only ever added to, on disk before the reader hears "saved", whole after kill -9."""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from slicewise.errors import UserError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
  id INTEGER PRIMARY KEY,
  reader TEXT NOT NULL,
  place INTEGER NOT NULL,
  item TEXT NOT NULL,
  value TEXT NOT NULL,
  session TEXT NOT NULL,
  active_ms INTEGER NOT NULL,
  at TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_place ON answers (reader, place);
CREATE TABLE IF NOT EXISTS closing (at TEXT NOT NULL);
"""
# The places of a reader that are finished: the last of "done" and "reopened" says so.
_FINISHED = (
    "SELECT place FROM answers WHERE id IN (SELECT MAX(id) FROM answers "
    "WHERE reader = ? AND item IN ('done', 'reopened') GROUP BY place) AND item = 'done'"
)


# Rows that are no answers.
_ACTS = ("opened", "done", "reopened")


class Refused(Exception):
    """An answer that may not be given (now); the message says why."""


class Answers:
    """The answers of a study. An answer that is changed is a new row; the last one counts, the others stay for the
    record. Safe to use from several threads, and several servers may share one file. `clock` tells the time, UTC.

    Raises `UserError` where the file is no such database or cannot be written.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.clock = clock
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            # WAL: a writer never blocks readers. FULL: every commit is on disk before it returns, power cut or not.
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise UserError(
                f"{path}: cannot be used for answers ({error}); check its permissions and its disk"
            ) from None

    def add(
        self,
        reader: str,
        place: int,
        item: str,
        value: str,
        session: str = "",
        active_ms: int = 0,
        required: Sequence[str] = (),
    ) -> None:
        """Store one answer; it is on disk when this returns. Check and storing are one transaction, so that nothing
        comes between: an answer to a finished place, a second "done", or anything after the end is `Refused`, and so
        is "done" before all `required` items are answered. `active_ms` counts as far as the server's own clock has run
        since the place was opened in this session.

        Raises sqlite3.Error where it could not be stored.
        """
        with self._transaction():
            if self.closed_at():
                raise Refused("the study is closed")
            if place in self._places(_FINISHED, reader):
                raise Refused("another case is open")
            missing = [name for name in required if name not in self._latest(reader, place)]
            if item == "done" and missing:
                raise Refused(f"not answered yet: {', '.join(missing)}")
            self._insert(reader, place, item, value, session, active_ms)

    def reopen(self, reader: str, place: int) -> None:
        """Open the finished place before `place` once more. `Refused` where that has been reopened itself, so that a
        reader goes back one case and no further."""
        with self._transaction():
            if self.closed_at():
                raise Refused("the study is closed")
            finished = self._places(_FINISHED, reader)
            if place - 1 not in finished or place in finished or self.is_reopened(reader, place):
                raise Refused("you can go back one case, but no further")
            self._insert(reader, place - 1, "reopened", "", "", 0)

    def is_reopened(self, reader: str, place: int) -> bool:
        """Whether a reader has come back to this place."""
        return place in self._places("SELECT place FROM answers WHERE reader = ? AND item = 'reopened'", reader)

    def close_study(self) -> None:
        """Take no more answers."""
        with self._transaction():
            if not self.closed_at():
                self._db.execute("INSERT INTO closing (at) VALUES (?)", (self._now(),))

    def closed_at(self) -> str:
        """When the study was closed, "" where it is open."""
        with self._lock:
            row = self._db.execute("SELECT at FROM closing").fetchone()
        return row[0] if row else ""

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One that holds off every other writer from its beginning on."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def _insert(self, reader: str, place: int, item: str, value: str, session: str, active_ms: int) -> None:
        now = self._now()
        query = (
            "SELECT (julianday(?) - julianday(MIN(at))) * 86400000 FROM answers "
            "WHERE reader = ? AND place = ? AND session = ?"
        )
        elapsed = self._db.execute(query, (now, reader, place, session)).fetchone()[0]
        row = (reader, place, item, value, session, min(active_ms, round(elapsed or 0)), now)
        self._db.execute(
            "INSERT INTO answers (reader, place, item, value, session, active_ms, at) VALUES (?, ?, ?, ?, ?, ?, ?)", row
        )

    def _places(self, query: str, reader: str) -> set[int]:
        with self._lock:
            return {place for (place,) in self._db.execute(query, (reader,)).fetchall()}

    def _latest(self, reader: str, place: int) -> dict[str, str]:
        query = "SELECT item, value FROM answers WHERE reader = ? AND place = ? ORDER BY id"
        with self._lock:
            return dict(self._db.execute(query, (reader, place)).fetchall())

    def latest(self, reader: str, place: int) -> dict[str, str]:
        """The answers that count at one place of a reader's sequence: item to value."""
        return {item: value for item, value in self._latest(reader, place).items() if item not in _ACTS}

    def finished(self, reader: str) -> set[int]:
        """The places that a reader has finished."""
        return self._places(_FINISHED, reader)

    def seconds(self, reader: str) -> dict[int, float]:
        """Active reading time by place: the longest that each visit to the page has told, summed over visits."""
        query = (
            "SELECT place, SUM(most) / 1000.0 FROM (SELECT place, MAX(active_ms) AS most FROM answers "
            "WHERE reader = ? GROUP BY place, session) GROUP BY place"
        )
        with self._lock:
            return dict(self._db.execute(query, (reader,)).fetchall())

    def all(self) -> Iterable[tuple[str, int, str, str, str]]:
        """Every row ever stored: (reader, place, item, value, at), oldest first."""
        with self._lock:
            return self._db.execute("SELECT reader, place, item, value, at FROM answers ORDER BY id").fetchall()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _now(self) -> str:
        return self.clock().isoformat(timespec="milliseconds")
