"""The server of a reading study. It knows no truth: the key stays closed, so no answer of its can depend on it.

Every reader sees a sequence of places, practice first. Only the place where a reader stands can be looked at and
answered, and the one before it taken up once more; answers are stored one by one, before they are acknowledged.
"""

import hashlib
import hmac
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from slicewise.study.create import ANSWERS, CASES, read_study
from slicewise.study.design import CONFIDENCE, KINDS, NOT_JUDGED, SCALE
from slicewise.study.store import Answers, Refused
from slicewise.viewer.display import windows
from slicewise.viewer.server import application, asset, asset_routes, body_of, host_names, page, redirect

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.responses import Response

PACKAGES = ("slicewise.viewer", "slicewise.study")
CONSENT_PLACE = -1
_COMMENT_LENGTH = 4000
_BODY_BYTES = 16384


@dataclass(frozen=True)
class Study:
    """A study as the server needs it."""

    folder: Path
    about: dict[str, Any]
    answers: Answers

    def reader(self, token: str) -> str | None:
        """Whose token this is; compared in constant time, by hash."""
        given = hashlib.sha256(token.encode()).hexdigest()
        names = [name for name, r in self.about["readers"].items() if hmac.compare_digest(r["token_sha256"], given)]
        return names[0] if names else None

    def sequence(self, reader: str) -> list[str]:
        """The cases in the order in which the reader sees them, practice first."""
        mine = self.about["readers"][reader]
        return [*mine["practice"], *mine["cases"]]

    def place(self, reader: str) -> int:
        """Where the reader stands: -1 before consent, the number of places at the end."""
        done = self.answers.finished(reader)
        return next(i for i in range(CONSENT_PLACE, len(self.sequence(reader)) + 1) if i not in done)

    def required(self) -> list[str]:
        """What must be answered before a case is done."""
        return [*(f"s{i}" for i in range(len(self.about["settings"]["structures"]))), "guess", "confidence"]

    def fits(self, item: str, value: str) -> bool:
        """Whether an answer is one that can be given."""
        if item == "comment":
            return len(value) <= _COMMENT_LENGTH
        if item in ("opened", "done", "back"):
            return value == ""
        allowed = {"guess": KINDS, "confidence": [str(i + 1) for i in range(len(CONFIDENCE))]}
        scale = [str(v) for v in (NOT_JUDGED, *SCALE)]
        return item in self.required() and value in allowed.get(item, scale)


def open_study(folder: Path) -> Study:
    """Raises `UserError` where the folder holds no study, or its answers cannot be opened."""
    return Study(folder, read_study(folder), Answers(folder / ANSWERS))


def study_app(study: Study, host: str = "127.0.0.1", url: str = "") -> "Starlette":
    """The app; a reader's page lies below /r/TOKEN/. Bound to the loopback it answers to its own names there, and to
    the one in `url`, which a proxy before it may ask for."""
    from starlette.requests import Request
    from starlette.routing import Route

    front = asset("slicewise.study", "study.html")

    def known(request: Request) -> str | None:
        return study.reader(request.path_params["token"])

    async def slash(request: Request) -> "Response":
        return redirect(f"{request.path_params['token']}/")

    async def start(request: Request) -> "Response":
        return page(front, "text/html") if known(request) else _unknown()

    def state(request: Request) -> "Response":
        reader = known(request)
        return _json(_state(study, reader)) if reader else _unknown()

    def volume(request: Request) -> "Response":
        reader = known(request)
        if not reader:
            return _unknown()
        place = request.path_params["place"]
        sequence = study.sequence(reader)
        if place != study.place(reader) or place >= len(sequence):
            return _json({"error": "another case is open"}, 409)
        return page((study.folder / CASES / f"{sequence[place]}.nii").read_bytes(), "application/octet-stream")

    async def answer(request: Request) -> "Response":
        from starlette.concurrency import run_in_threadpool

        reader = known(request)
        if not reader:
            return _unknown()
        body = await body_of(request, _BODY_BYTES)
        if body is None:
            return _json({"error": "too long"}, 413)
        return await run_in_threadpool(_store, study, reader, body)

    routes = [
        Route("/r/{token}", slash),
        Route("/r/{token}/", start),
        Route("/r/{token}/state", state),
        Route("/r/{token}/volume/{place:int}", volume),
        Route("/r/{token}/answers", answer, methods=["POST"]),
        *asset_routes(*PACKAGES),
    ]
    named = urlsplit(url).hostname
    return application(routes, [*host_names(host), *([named] if named else [])])


def _state(study: Study, reader: str) -> dict[str, Any]:
    """What the page needs to continue where the reader stopped."""
    settings, place = study.about["settings"], study.place(reader)
    practice, total = len(study.about["readers"][reader]["practice"]), len(study.sequence(reader))
    grid = study.about["grid"]
    return {
        "title": settings["title"],
        "reader": reader,
        "consent": study.about["consent"],
        "structures": settings["structures"],
        "anchors": settings["anchors"],
        "confidence": CONFIDENCE,
        "windows": windows(),
        "place": place,
        "practice": practice,
        "total": total,
        "answers": study.answers.latest(reader, place) if 0 <= place < total else {},
        "shape": [grid["slices"], grid["size"], grid["size"]],
        "spacing": [grid["slice_mm"], grid["pixel_mm"], grid["pixel_mm"]],
        "back": place > practice and not study.answers.is_reopened(reader, place),
        "closed": bool(study.answers.closed_at()),
    }


def _store(study: Study, reader: str, body: bytes) -> "Response":
    """Check one answer and store it."""
    try:
        given = json.loads(body)
        place, item, value = given["place"], given["item"], given["value"]
        session, active = given.get("session", ""), given.get("active_ms", 0)
        kinds = [(place, int), (item, str), (value, str), (session, str), (active, int)]
        fits = all(type(v) is kind for v, kind in kinds) and len(session) <= 64 and 0 <= active < 2**40
        f"{item}{value}{session}".encode()  # lone surrogates are no text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fits = False
    if not fits:
        return _json({"error": "not an answer"}, 400)
    if place != study.place(reader) or (place == len(study.sequence(reader)) and item != "back"):
        return _json({"error": "another case is open"}, 409)
    if place == CONSENT_PLACE and (item, value) != ("done", ""):
        return _json({"error": "consent comes first"}, 409)
    if place != CONSENT_PLACE and not study.fits(item, value):
        return _json({"error": f"no such answer: {item[:40]} = {value[:40]}"}, 400)
    practice = len(study.about["readers"][reader]["practice"])
    required = study.required() if place != CONSENT_PLACE else ()
    try:
        if item == "back":
            if place <= practice:
                raise Refused("practice is over")
            study.answers.reopen(reader, place)
        else:
            study.answers.add(reader, place, item, value, session, active, required)
    except Refused as refusal:
        return _json({"error": str(refusal)}, 409)
    except sqlite3.Error as error:
        return _json({"error": f"not stored: {error}"}, 503)
    saved = {"saved": item}
    if item == "done" and 0 <= place < practice:
        saved["truth"] = study.about["feedback"][study.sequence(reader)[place]]
    return _json(saved)


def _unknown() -> "Response":
    return page(b"This link is not known. Ask for your personal link again.\n", "text/plain", 404)


def _json(value: Any, status: int = 200) -> "Response":
    return page(json.dumps(value).encode(), "application/json", status)
