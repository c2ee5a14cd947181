"""The reading study: alike cases, blind server, answers that survive."""

import csv
import hashlib
import http.client
import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import toy_head
from slicewise import cli
from slicewise.data.resample import Grid, resample_volume
from slicewise.errors import UserError
from slicewise.io.dicom_write import write_series
from slicewise.io.nifti import write_nifti
from slicewise.study.analysis import readings
from slicewise.study.app import Study, open_study, study_app
from slicewise.study.cases import common_grid, on_grid
from slicewise.study.create import create, read_links, read_study
from slicewise.study.design import STRUCTURES, StudySettings, gap, order, pair
from slicewise.study.report import write_report
from slicewise.study.store import Answers
from slicewise.volume import Volume
from test_viewer import served

SMALL = StudySettings(readers=2, cases="3+3", repeats="1+1", practice="1+1", structures=("Skull", "Ventricles"))


def head(seed: int, slices: int = 12, size: int = 32, spacing=(5.0, 7.0, 7.0)) -> Volume:
    return Volume.regular(toy_head(seed, slices, size), spacing)


def folders(tmp: Path, real: int = 5, synthetic: int = 5) -> tuple[Path, Path]:
    """Real heads as DICOM of a finer grid, off centre; synthetic ones as NIfTI of another length."""
    for i in range(real):
        volume = head(i, 14, 40, (5.0, 5.5, 5.5))
        moved = Volume.regular(volume.hu, volume.spacing, origin=(-90.0 - i, -120.0, 40.0))
        write_series(moved, tmp / "real" / f"r{i}", synthetic=None, patient_id=f"REAL-{i}")
    for i in range(synthetic):
        write_nifti(head(100 + i, 12 + i % 2), tmp / "synthetic" / f"s{i}.nii.gz")
    return tmp / "real", tmp / "synthetic"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    tmp = tmp_path_factory.mktemp("study")
    about, skipped, _ = create(tmp / "study", *folders(tmp), SMALL, allow_leak=True)
    assert skipped == []
    return tmp / "study", about


# Design --------------------------------------------------------------------------------------------------------------


@given(
    counts=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_order_holds_every_case_and_the_repeats_far_apart(counts, shares, seed):
    real, synthetic = ([f"{k}{i}" for i in range(n)] for k, n in zip("rs", counts))
    total = sum(counts)
    again = [int(share * n) for share, n in zip(shares, counts)]
    if sum(again) > total - gap(total):
        again = [0, 0]
    sequence = order(real, synthetic, (again[0], again[1]), np.random.default_rng(seed))
    twice = [c for c in set(sequence) if sequence.count(c) == 2]
    assert set(sequence) == {*real, *synthetic}
    assert len(sequence) == total + sum(again)
    assert [sum(c[0] == k for c in twice) for k in "rs"] == again
    for case in twice:
        first = sequence.index(case)
        assert sequence.index(case, first + 1) - first >= gap(total)


def test_order_tells_nothing_about_the_kind():
    """Over 600 readers: real and synthetic cases stand equally early, and after a real case comes a real one no more
    often than chance has it."""
    real, synthetic = [f"r{i}" for i in range(10)], [f"s{i}" for i in range(10)]
    rng = np.random.default_rng(0)
    orders = [order(real, synthetic, (2, 2), rng) for _ in range(600)]
    assert len({tuple(o) for o in orders}) == 600
    kinds = np.array([[case[0] == "r" for case in o] for o in orders], float)
    share = kinds.mean(axis=0)
    assert np.abs(share - 0.5).max() < 4.5 * 0.5 / math.sqrt(600), "at every place"
    same = (kinds[:, 1:] == kinds[:, :-1]).mean()
    assert abs(same - 11 / 23) < 0.02, "12 of each kind: the neighbour is of the same kind in 11 of 23"


@pytest.mark.parametrize(
    "change, what",
    [
        ({"cases": "50"}, "cases=50: expected REAL"),
        ({"cases": "1+5"}, "at least 2 of each"),
        ({"repeats": "4+0"}, "repeats=4"),
        ({"repeats": "3+3"}, "repeats=3"),
        ({"practice": "x"}, "practice=x"),
        ({"readers": 0}, "readers=0"),
        ({"structures": ()}, "StudySettings.structures"),
        ({"structures": ("A", "A")}, "StudySettings.structures"),
        ({"margin": 0.0}, "margin=0"),
        ({"slices": -1}, "StudySettings.slices"),
    ],
)
def test_settings_that_make_no_study(change, what):
    values = {"cases": "3+3", "repeats": "1+1", **change}
    with pytest.raises(UserError, match=what):
        StudySettings(**values)


def test_defaults_are_the_papers_table():
    assert StudySettings().structures == STRUCTURES
    assert len(STRUCTURES) == 8
    assert pair("StudySettings.cases", StudySettings().cases) == (50, 50)


# Cases ---------------------------------------------------------------------------------------------------------------


def test_volume_of_the_grids_spacing_is_moved_not_softened():
    volume = head(1)
    grid = common_grid([volume.spacing], 0, 0, 168.0, False)
    assert (grid.size, grid.slice_mm) == (24, 5.0)
    hu = on_grid(volume, grid)
    found = [
        (y, x)
        for y in range(9)
        for x in range(9)
        for z in range(len(volume.hu) - len(hu) + 1)
        if (volume.hu[z : z + len(hu), y : y + 24, x : x + 24] == hu).all()
    ]
    assert len(found) == 1, "a cut of the original, voxel for voxel"
    flipped = Volume(
        np.ascontiguousarray(volume.hu[:, ::-1, ::-1]),
        volume.positions + np.array([31 * 7.0, 31 * 7.0, 0.0]),
        -volume.row_axis,
        -volume.column_axis,
        volume.pixel_spacing,
    )
    assert (on_grid(flipped, grid) == hu).all(), "however its rows run"
    wide = on_grid(volume, Grid(64, 64 * 7.0, 5.0))
    assert wide.shape[1:] == (64, 64)
    assert (wide[:, :8] == -1024).all()
    other = head(1, spacing=(5.0, 6.0, 6.0))
    assert (on_grid(other, grid) == resample_volume(other, grid).hu).all()


def test_common_grid_is_the_coarsest():
    grid = common_grid([(5.0, 0.5, 0.5), (3.0, 1.875, 1.5)], 0, 0, 240.0, True)
    assert (grid.size, grid.fov_mm, grid.slice_mm) == (128, 240.0, 5.0)
    assert common_grid([(5.0, 0.5, 0.5)], 1.0, 2.5, 240.0, True).slice_mm == 2.5
    with pytest.raises(UserError, match="fov_mm=20"):
        common_grid([(5.0, 5.0, 5.0)], 0, 0, 20.0, True)


def test_case_files_are_alike_but_for_their_voxels(made):
    """Sizes, headers, dates, rights: one value for all cases; names without meaning; air around every head."""
    folder, about = made
    files = sorted((folder / "cases").iterdir())
    key = json.loads((folder / "key.json").read_text())["cases"]
    assert {f.stem for f in files} == set(key)
    assert sum("again" not in v for v in key.values()) == 8
    assert sorted(v["kind"] for v in key.values() if "again" not in v) == ["real"] * 4 + ["synthetic"] * 4
    assert len({(f.stat().st_size, f.stat().st_mtime_ns, f.stat().st_mode, f.read_bytes()[:352]) for f in files}) == 1
    extremes = set()
    assert all(len(f.stem) == 12 and int(f.stem, 16) >= 0 for f in files)
    for file in files:
        hu = np.asarray(nib.load(file).dataobj)
        grid = about["grid"]
        assert hu.shape == (grid["size"], grid["size"], grid["slices"])
        assert (hu[[0, -1]] == -1000).all(), "a head, and nothing but air around it"
        assert hu.max() > 500, "a head, and nothing but air around it"
        extremes.add((int(hu.min()), int(hu.max()), int(hu[hu > -1000].min()) >= -800, len(np.unique(hu[hu < -800]))))
    assert len(extremes) == 1, "one air, one largest HU"
    # Names are in no order of kinds: over many studies that would show; here, they are not the order of drawing.
    assert list(key) == sorted(key)


def test_nothing_the_server_reads_says_which_is_which(made):
    folder, _ = made
    about = read_study(folder)
    practice = {case for plan in about["readers"].values() for case in plan["practice"]}
    assert set(about["feedback"]) == practice, "of practice alone, which is told when it is over"
    text = json.dumps({k: v for k, v in about.items() if k not in ("consent", "feedback")})
    for word in ("real", "synthetic", "r0", "s0", "seed"):
        assert word not in text, word
    assert folder.stat().st_mode & 0o077 == 0, "for the owner's eyes"


def test_the_same_seed_draws_the_same_and_no_seed_another(tmp_path):
    real, synthetic = folders(tmp_path, 4, 4)
    fixed = StudySettings(readers=1, cases="2+2", repeats="0+0", practice="0+0", seed=7)
    made = [create(tmp_path / n, real, synthetic, fixed, allow_leak=True)[0] for n in "ab"]
    plans = [about["readers"]["Reader 1"]["cases"] for about in made]
    assert plans[0] == plans[1]
    free = StudySettings(readers=1, cases="2+2", repeats="0+0", practice="0+0")
    assert create(tmp_path / "c", real, synthetic, free, allow_leak=True)[0]["readers"]["Reader 1"]["cases"] != plans[0]


def test_bad_input_makes_no_study(tmp_path):
    real, synthetic = folders(tmp_path, 3, 3)
    (real / "broken.nii").write_bytes(b"cut")
    out = tmp_path / "out"
    small = StudySettings(readers=1, cases="2+2", repeats="0+0", practice="0+0")
    cases = [
        ((real, real), small, "two folders"),
        ((real, tmp_path / "absent"), small, "no such"),
        ((real, synthetic), StudySettings(cases="3+9", repeats="0+0", practice="0+0"), "synthetic=.*3 usable"),
        (
            (real, synthetic),
            StudySettings(cases="2+2", repeats="0+0", practice="0+0", slices=99),
            "lower StudySettings.slices",
        ),
    ]
    for paths, chosen, what in cases:
        with pytest.raises(UserError, match=what):
            create(out, *paths, chosen)
        with pytest.raises(UserError, match="consent="):
            create(out, real, synthetic, small, tmp_path / "absent.txt")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["real", "synthetic"], "nothing half made is left"
    (tmp_path / "consent.txt").write_text("First.\n\nSecond.\n")
    about, _, _ = create(out, real, synthetic, small, tmp_path / "consent.txt", allow_leak=True)
    assert about["consent"] == ["First.", "Second."]
    assert read_study(out) == json.loads(json.dumps(about))
    with pytest.raises(UserError, match="already exists"):
        create(out, real, synthetic, small)
    with pytest.raises(UserError, match=r"study\.json: no study"):
        read_study(tmp_path)


# Server --------------------------------------------------------------------------------------------------------------


class Client:
    """A reader's browser, as far as the server can tell."""

    def __init__(self, base: str, token: str) -> None:
        self.path = f"/r/{token}/"
        self.connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=60)

    def ask(self, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        self.connection.request("GET" if data is None else "POST", self.path + path, data)
        answer = self.connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()

    def state(self) -> dict[str, Any]:
        return json.loads(self.ask("state")[2])

    def answer(self, place: int, item: str, value: str = "", **more: Any) -> int:
        return self.ask("answers", {"place": place, "item": item, "value": value, **more})[0]

    def read_case(self, place: int, ratings: tuple[str, ...] = ("3", "2"), guess: str = "real") -> None:
        for i, value in enumerate(ratings):
            assert self.answer(place, f"s{i}", value) == 200
        for item, value in (("guess", guess), ("confidence", "2"), ("done", "")):
            assert self.answer(place, item, value, session="a", active_ms=1500) == 200


@pytest.fixture()
def study(made, tmp_path) -> Iterator[tuple[Study, str, list[str]]]:
    """A served copy of the study without its key: study, address, tokens."""
    folder, _ = made
    copy = tmp_path / "study"
    (copy / "cases").mkdir(parents=True)
    for file in [*(folder / "cases").iterdir(), folder / "study.json"]:
        os.link(file, copy / file.relative_to(folder))
    held = open_study(copy)
    with served(study_app(held)) as base:
        yield held, base, [token for _, token in read_links(folder)]
    held.answers.close()


def test_a_whole_reading_is_blind(study):
    """The server works without the key. At every place each answer of it has the same status, headers and length; the
    address holds the token and the place alone; the voxels come with the header that all have."""
    held, base, tokens = study
    assert not (held.folder / "key.json").exists()
    seen = set()
    for token in tokens:
        reader = Client(base, token)
        assert reader.state()["place"] == -1
        assert reader.ask("volume/0")[0] == 409
        assert reader.answer(-1, "done") == 200
        total = reader.state()["total"]
        assert total == 2 + 6 + 2
        for place in range(total):
            state = reader.state()
            assert state.pop("back") == (place > 2), "one case back, but not into practice"
            assert state["place"] == place
            assert state["answers"] == {}
            status, headers, body = reader.ask(f"volume/{place}")
            headers.pop("date")
            assert not {"last-modified", "etag", "content-encoding", "server"} & set(headers)
            lengths = (len(json.dumps(state | {"place": 0})), len(body), headers["content-length"])
            seen.add((status, tuple(sorted(headers.items())), body[:352], lengths))
            named = json.dumps({k: v for k, v in state.items() if k != "consent"})
            assert not any(case in named for case in held.sequence(state["reader"]))
            reader.read_case(place)
        assert reader.state()["place"] == total
        assert reader.ask(f"volume/{total}")[0] == 409
        assert reader.answer(total, "done") == 409
    # The two readers' numbers are of one length, too.
    assert len(seen) == 1


def test_what_readers_see_is_their_case(study):
    held, base, tokens = study
    reader = Client(base, tokens[0])
    reader.answer(-1, "done")
    for place, case in enumerate(held.sequence("Reader 1")[:3]):
        assert reader.ask(f"volume/{place}")[2] == (held.folder / "cases" / f"{case}.nii").read_bytes()
        reader.read_case(place)


def test_only_the_open_case_takes_answers_and_only_possible_ones(study):
    _, base, tokens = study
    reader = Client(base, tokens[0])
    assert reader.answer(0, "s0", "3") == 409, "consent comes first"
    assert reader.answer(-1, "s0", "3") == 409
    reader.answer(-1, "done")
    for place in (-1, 1, 99):
        assert reader.answer(place, "s0", "3") == 409
    for item, value in (("s0", "4"), ("s9", "1"), ("guess", "maybe"), ("confidence", "0"), ("done", "x"), ("", "")):
        assert reader.answer(0, item, value) == 400, item
    for body in (b"", b"[]", b"null", b'{"place": 0}', b'{"place": true, "item": "s0", "value": "1"}', b"\xff"):
        assert reader.ask("answers", body)[0] == 400, body
    assert reader.answer(0, "s0", "3", active_ms=-1) == 400
    assert reader.ask("answers", b" " * 20000)[0] == 413
    assert reader.answer(0, "comment", "x" * 4001) == 400
    for text in ("\ud800", "a\udfff"):
        assert reader.answer(0, "comment", text) == reader.answer(0, text, "3") == 400, "lone surrogates are no text"
    assert reader.ask("answers", b"[" * 8000 + b"]" * 8000)[0] == 400
    assert reader.answer(0, "done") == 409, "not everything is answered"
    assert reader.state()["answers"] == {}, "none of it was stored"
    for foreign in ("wrong", tokens[0][:-1], tokens[0] + "x", "%00", "é".encode().hex()):
        stranger = Client(base, foreign)
        assert {stranger.ask(p)[0] for p in ("", "state", "volume/0")} == {404}
        assert stranger.ask("answers", {"place": 0, "item": "s0", "value": "3"})[0] == 404


def test_reading_goes_on_where_it_stopped_and_the_last_answer_counts(study):
    held, base, tokens = study
    times = iter(range(10**6))
    held.answers.clock = lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=7 * next(times))
    first = Client(base, tokens[1])
    first.answer(-1, "done")
    first.answer(0, "s0", "1", session="a", active_ms=4000)
    first.answer(0, "s0", "2", session="a", active_ms=6000)
    first.answer(0, "comment", "a\nb")
    elsewhere = Client(base, tokens[1])
    assert elsewhere.state()["answers"] == {"s0": "2", "comment": "a\nb"}
    elsewhere.answer(0, "opened", session="b")
    elsewhere.answer(0, "s1", "0", session="b", active_ms=2500)
    assert held.answers.seconds("Reader 2")[0] == 8.5, "both visits"
    elsewhere.answer(0, "s1", "1", session="b", active_ms=10**9)
    assert held.answers.seconds("Reader 2")[0] == 6 + 14, "no longer than the server's clock has run since then"
    assert [r[3] for r in held.answers.all() if r[2] == "s0"] == ["1", "2"], "what was changed stays on record"
    assert Client(base, tokens[0]).state()["place"] == -1, "others stand where they stood"


def test_a_second_showing_is_another_file_of_the_same_case(made):
    """Other bytes, one case: noise of 1 HU apart, and readings of both find each other."""
    folder, about = made
    key = json.loads((folder / "key.json").read_text())["cases"]
    shown = {name: np.asarray(nib.load(folder / "cases" / f"{name}.nii").dataobj).astype(int) for name in key}
    twins = {name: entry["again"] for name, entry in key.items() if "again" in entry}
    assert len(twins) >= 2
    for name, first in twins.items():
        apart = (shown[name] - shown[first])[shown[first] > -800]
        assert np.abs(apart).max() <= 12
        assert 0.5 < apart.std() < 2.5
    for plan in about["readers"].values():
        assert len(set(plan["cases"])) == len(plan["cases"])
        assert sum(c in twins for c in plan["cases"]) == 2
        assert all(plan["cases"].index(twins[c]) < i for i, c in enumerate(plan["cases"]) if c in twins)


def test_one_case_back_and_no_further(study):
    held, base, tokens = study
    reader = Client(base, tokens[0])
    reader.answer(-1, "done")
    for place in range(2):
        assert reader.answer(place, "back") == 409, "practice does not come back"
        reader.read_case(place)
    assert reader.answer(2, "back") == 409, "nor is it gone back to"
    for place in (2, 3):
        reader.read_case(place)
    assert reader.state()["back"]
    assert reader.answer(4, "back") == 200
    state = reader.state()
    assert (state["place"], state["back"], state["answers"]["guess"]) == (3, False, "real")
    assert reader.answer(3, "back") == 409
    assert reader.ask("volume/3")[0] == 200
    assert reader.ask("volume/4")[0] == 409
    assert reader.answer(3, "guess", "synthetic") == 200
    assert reader.answer(3, "done") == 200
    assert reader.state()["place"] == 4
    assert held.answers.latest("Reader 1", 3)["guess"] == "synthetic"
    for place in range(4, 10):
        reader.read_case(place)
    assert reader.state()["place"] == 10
    assert reader.answer(10, "back") == 200
    assert reader.state()["place"] == 9


def test_practice_is_told_and_nothing_else(study, made):
    _, base, tokens = study
    key = json.loads((made[0] / "key.json").read_text())["cases"]
    held, reader = study[0], Client(base, tokens[0])
    reader.answer(-1, "done")
    for place, case in enumerate(held.sequence("Reader 1")[:4]):
        for item, value in (("s0", "3"), ("s1", "2"), ("guess", "real"), ("confidence", "2")):
            reader.answer(place, item, value)
        told = json.loads(reader.ask("answers", {"place": place, "item": "done", "value": ""})[2])
        assert told == {"saved": "done", **({"truth": key[case]["kind"]} if place < 2 else {})}


def test_done_closes_a_case_for_answers_that_race_it(study):
    """Fifty answers and one "done" at once, from two servers of one file: none is stored after it."""
    held, base, tokens = study
    reader = Client(base, tokens[0])
    reader.answer(-1, "done")
    for item, value in (("s0", "3"), ("s1", "2"), ("guess", "real"), ("confidence", "2")):
        reader.answer(0, item, value)
    other = open_study(held.folder)
    with served(study_app(other)) as second:
        clients = [Client(b, tokens[0]) for b in [base, second] * 25]
        jobs = [threading.Thread(target=c.answer, args=(0, "comment", str(i))) for i, c in enumerate(clients)]
        jobs.insert(20, threading.Thread(target=Client(second, tokens[0]).answer, args=(0, "done")))
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
    other.answers.close()
    items = [item for name, place, item, _, _ in held.answers.all() if place == 0]
    assert items.count("done") == 1
    assert items[-1] == "done"


def test_a_closed_study_takes_nothing(study, capsys):
    held, base, tokens = study
    reader = Client(base, tokens[0])
    reader.answer(-1, "done")
    assert reader.answer(0, "s0", "3") == 200
    assert not reader.state()["closed"]
    assert run("study", "close", held.folder) == 0
    assert "Reader 1: 0 of 10" in capsys.readouterr().out
    assert reader.answer(0, "s0", "2") == 409
    assert reader.answer(0, "done") == 409
    assert reader.state()["closed"]
    assert held.answers.latest("Reader 1", 0) == {"s0": "3"}


def test_redirects_stay_with_the_browsers_scheme_and_host(study):
    _, base, tokens = study
    connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=30)
    for path, status in ((f"/r/{tokens[0]}", 307), (f"/r/{tokens[0]}/state/", 404), ("/assets/study.js/", 404)):
        connection.request("GET", path, headers={"Host": "127.0.0.1", "X-Forwarded-Proto": "https"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status, path
        assert answer.getheader("Location", "x/").find(":") == -1, path
    connection.close()


def test_bodies_have_a_limit_however_they_are_sent_and_requests_an_end(study, monkeypatch):
    _, base, tokens = study
    host, port = base.removeprefix("http://").split(":")
    chunked = http.client.HTTPConnection(host, int(port), timeout=30)
    chunked.request("POST", f"/r/{tokens[0]}/answers", iter([b" " * 8192] * 400), encode_chunked=True,
                    headers={"Transfer-Encoding": "chunked"})  # fmt: skip
    assert chunked.getresponse().status == 413
    chunked.close()
    monkeypatch.setattr("slicewise.viewer.server.REQUEST_S", 0.5)
    head = f"POST /r/{tokens[0]}/answers HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
    for start in (b"", b"GET / HT", head, head + b"Content-Length: 100\r\n\r\n{"):
        with socket.create_connection((host, int(port)), timeout=20) as slow:
            slow.sendall(start)
            begun = time.monotonic()
            while slow.recv(4096):
                pass
            assert time.monotonic() - begun < 5, start
    assert Client(base, tokens[0]).state()["place"] == -1, "others are served"


def test_twenty_readers_at_once(made, tmp_path):
    """Each reads three cases from a thread of its own: every answer arrives, at its reader's place."""
    folder, about = made
    tokens = [f"token-{i:02d}" for i in range(20)]
    plan = about["readers"]["Reader 1"]
    many = {
        f"Reader {i:02d}": {**plan, "token_sha256": hashlib.sha256(t.encode()).hexdigest()}
        for i, t in enumerate(tokens)
    }
    held = Study(folder, {**about, "readers": many}, Answers(tmp_path / "many.sqlite"))
    wrong: list[BaseException] = []

    def read(number: int) -> None:
        try:
            reader = Client(base, tokens[number])
            assert reader.answer(-1, "done") == 200
            for place in range(3):
                assert reader.ask(f"volume/{place}")[0] == 200
                reader.read_case(place, ratings=(str(1 + number % 3), str(1 + place)))
        except BaseException as error:
            wrong.append(error)

    with served(study_app(held)) as base:
        threads = [threading.Thread(target=read, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    for i, name in enumerate(many):
        assert held.place(name) == 3
        for place in range(3):
            given = held.answers.latest(name, place)
            assert (given["s0"], given["s1"], given["guess"]) == (str(1 + i % 3), str(1 + place), "real")
    held.answers.close()


def start(folder: Path, port: str = "0") -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "slicewise", "study", "serve", str(folder), "--port", port]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("serving"):
            return process, line.split(" at ")[1].split()[0]
    raise AssertionError(process.communicate()[1])


def test_kill_minus_nine_loses_no_answer(made):
    """The real server is killed while a reader answers as fast as it can: every acknowledged answer is there, the
    database is whole, and the next server continues."""
    folder, _ = made
    token = dict(read_links(folder))["Reader 2"]
    process, base = start(folder)
    reader = Client(base, token)
    assert reader.answer(-1, "done") == 200
    acknowledged: list[str] = []

    def comment() -> None:
        try:
            for i in range(100_000):
                if reader.answer(0, "comment", f"note {i}") == 200:
                    acknowledged.append(f"note {i}")
        except (OSError, http.client.HTTPException):
            pass

    thread = threading.Thread(target=comment)
    thread.start()
    while len(acknowledged) < 25 and thread.is_alive():
        thread.join(0.01)
    os.kill(process.pid, signal.SIGKILL)
    thread.join()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(acknowledged) >= 25
    with sqlite3.connect(folder / "answers.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        stored = {v for (v,) in database.execute("SELECT value FROM answers WHERE item = 'comment'")}
    assert set(acknowledged) <= stored
    assert len(stored) <= len(acknowledged) + 1
    held = open_study(folder)
    with served(study_app(held)) as again:
        state = Client(again, token).state()
        assert state["place"] == 0
        assert state["answers"]["comment"] in stored
    held.answers.close()


# From first to last by the command line ------------------------------------------------------------------------------


def run(*argv: Any) -> int:
    try:
        cli.main([str(a) for a in argv])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_create_answer_report(tmp_path, capsys):
    real, synthetic = folders(tmp_path, 4, 4)
    out = tmp_path / "study"
    flags = [
        "--readers",
        "2",
        "--cases",
        "3+3",
        "--repeats",
        "1+1",
        "--practice",
        "1+1",
        "--structures",
        "Skull",
        "Sulci",
        "--allow-leak",
    ]
    assert run("study", "create", out, "--real", real, "--synthetic", synthetic, *flags) == 0
    assert "2 readers read 8 each" in capsys.readouterr().out
    assert run("study", "report", out) == 1
    assert "no answers yet" in capsys.readouterr().err
    key = json.loads((out / "key.json").read_text())["cases"]
    held = open_study(out)
    seconds = iter(range(10**6))
    held.answers.clock = lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=10 * next(seconds))
    for name in held.about["readers"]:
        held.answers.add(name, -1, "done", "")
        for place, case in enumerate(held.sequence(name)):
            kind = key[case]["kind"]
            values = {"s0": "3", "s1": "3" if kind == "real" else "2", "guess": kind, "confidence": "3"}
            if place == 4:
                values["comment"] = "=cmd|' /C calc'!A0 <b>"
            for item, value in [*values.items(), ("done", "")]:
                held.answers.add(name, place, item, value, "visit", 1000 * (place + 1))
    read = readings(held.about, key, held.answers)
    assert len(read) == 16, "practice does not count"
    assert sum(r.again for r in read) == 4, "practice does not count"
    assert read[0].seconds == 3.0, "practice does not count"
    held.answers.close()
    assert run("study", "report", out, "--out", tmp_path / "report") == 0
    assert "Reader 2: 8 of 8" in capsys.readouterr().out
    figures = json.loads((tmp_path / "report" / "report.json").read_text())
    assert figures["table2"][1]["synthetic"]["mean"]["value"] == 2.0
    assert figures["guess"]["auc"]["value"] == 1.0
    assert figures["agreement"]["between"][0]["kappa"]["value"] == 1.0
    rows = list(csv.DictReader((tmp_path / "report" / "table2.csv").open()))
    assert [r["structure"] for r in rows] == ["Skull", "Sulci"]
    assert float(rows[1]["difference"]) == -1.0
    rows = list(csv.DictReader((tmp_path / "report" / "readings.csv").open()))
    assert len(rows) == 16
    assert {r["Sulci"] for r in rows if r["kind"] == "synthetic"} == {"2"}
    assert [r["comment"] for r in rows if r["comment"]] == ["'=cmd|' /C calc'!A0 <b>"] * 2, (
        "no formula for a spreadsheet"
    )
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Sulci" in page
    assert "&lt;b&gt;" in page
    assert "http" not in page
    assert "complete" not in page
    (out / "key.json").unlink()
    with pytest.raises(UserError, match="key is missing"):
        write_report(out, tmp_path / "again")


def test_commands_say_what_is_wrong_in_one_line(tmp_path, capsys, monkeypatch):
    assert run("study", "--help") == 0
    assert "create" in capsys.readouterr().out
    assert run("study") == 2
    assert run("study", "nonsense") == 2
    capsys.readouterr()
    for argv in (
        ("serve", tmp_path),
        ("report", tmp_path),
        ("create", tmp_path / "x", "--real", "no", "--synthetic", "nor"),
    ):
        assert run("study", *argv) == 1
        err = capsys.readouterr().err.strip()
        assert err.startswith(f"slicewise study {argv[0]}: ")
        assert "\n" not in err
    (tmp_path / "study.json").write_text("{")
    assert run("study", "serve", tmp_path) == 1
    assert "damaged" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert run("study", "serve", tmp_path) == 1
    assert "slicewise[clinic]" in capsys.readouterr().err
