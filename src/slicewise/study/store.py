"""Answers in SQLite: only ever added to, on disk before the reader hears "saved", whole after kill -9."""

import sqlite3
import threading
from collections.abc import Iterable
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
"""


class Answers:
    """The answers of a study. An answer that is changed is a new row; the last one counts, the others stay for the
    record. Safe to use from several threads, and several servers may share one file.

    Raises `UserError` where the file is no such database or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            # WAL: a writer never blocks readers. FULL: every commit is on disk before it returns, power cut or not.
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise UserError(f"{path}: cannot be used for answers ({error}); look at its rights and its disk") from None

    def add(self, reader: str, place: int, item: str, value: str, session: str = "", active_ms: int = 0) -> None:
        """Store one answer; it is on disk when this returns. Raises sqlite3.Error where it could not be stored."""
        row = (reader, place, item, value, session, active_ms, datetime.now(UTC).isoformat(timespec="milliseconds"))
        with self._lock:
            self._db.execute(
                "INSERT INTO answers (reader, place, item, value, session, active_ms, at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    def latest(self, reader: str, place: int) -> dict[str, str]:
        """The answers that count at one place of a reader's sequence: item to value."""
        query = "SELECT item, value FROM answers WHERE reader = ? AND place = ? ORDER BY id"
        with self._lock:
            return dict(self._db.execute(query, (reader, place)).fetchall())

    def finished(self, reader: str) -> set[int]:
        """The places that a reader has finished."""
        query = "SELECT DISTINCT place FROM answers WHERE reader = ? AND item = 'done'"
        with self._lock:
            return {place for (place,) in self._db.execute(query, (reader,)).fetchall()}

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
