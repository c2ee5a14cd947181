"""What the study server takes: readers who all answer at once, as fast as they can, against the real server process.

    python bench/study_load.py [--readers 20] [--cases 10] [--size 256]

Prints answers a second and how long an answer and a volume take, median, 95th percentile and worst. Every answer is on
disk (SQLite, WAL, synchronous=FULL) before it is acknowledged. Afterwards the answers are counted in the database.
"""

import argparse
import http.client
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from slicewise.io.nifti import write_nifti
from slicewise.study.create import ANSWERS, create, read_links
from slicewise.study.design import STRUCTURES, StudySettings
from slicewise.volume import Volume


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--readers", type=int, default=20)
    options.add_argument("--cases", type=int, default=10, help="cases that every reader reads")
    options.add_argument("--size", type=int, default=256, help="pixels a side; 32 slices")
    a = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), a.readers, a.cases, a.size)


def measure(folder: Path, readers: int, cases: int, size: int) -> None:
    make(folder, readers, cases, size)
    study = folder / "study"
    command = [sys.executable, "-m", "slicewise", "study", "serve", str(study), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = next(line for line in server.stdout if line.startswith("serving")).split("http://")[1].split()[0]
    answers: list[float] = []
    volumes: list[float] = []
    threads = [
        threading.Thread(target=read, args=(address, token, cases, answers, volumes)) for _, token in read_links(study)
    ]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - started
    server.kill()
    server.wait()
    with sqlite3.connect(study / ANSWERS) as database:
        stored = database.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
    megabytes = (size * size * 32 * 2 + 352) / 1e6
    print(f"{readers} readers, {cases} cases each, volumes of {megabytes:.1f} MB, {os.cpu_count()} processors")
    print(f"answers  {len(answers)} acknowledged, {stored} on disk, {len(answers) / seconds:.0f} a second")
    for what, times in (("answer", answers), ("volume", volumes)):
        median, late = np.quantile(times, [0.5, 0.95]) * 1000
        print(f"{what}   median {median:.0f} ms, 95 % within {late:.0f} ms, worst {max(times) * 1000:.0f} ms")
    assert stored == len(answers), "an acknowledged answer is missing"


def make(folder: Path, readers: int, cases: int, size: int) -> None:
    """A study of balls of soft tissue in air: what is in a file does not matter here."""
    z, y, x = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in (32, size, size)), indexing="ij")
    rng = np.random.default_rng(0)
    for kind in ("real", "synthetic"):
        for i in range((cases + 1) // 2):
            hu = np.where(z**2 + y**2 + x**2 < 1, 35 + rng.normal(0, 4, z.shape), -1000.0).round().astype(np.int16)
            write_nifti(Volume.regular(hu, (5.0, 240 / size, 240 / size)), folder / kind / f"{kind}{i}.nii")
    half = (cases + 1) // 2
    settings = StudySettings(
        readers=readers, cases=f"{half}+{half}", repeats="0+0", practice="0+0", remove_table=False, slices=0
    )
    create(folder / "study", folder / "real", folder / "synthetic", settings, allow_leak=True)


def read(address: str, token: str, cases: int, answers: list[float], volumes: list[float]) -> None:
    """One reader: consent, then every case with all its answers."""
    connection = http.client.HTTPConnection(address, timeout=120)

    def ask(path: str, body: dict[str, object] | None = None) -> float:
        started = time.monotonic()
        connection.request("POST" if body else "GET", f"/r/{token}/{path}", json.dumps(body) if body else None)
        reply = connection.getresponse()
        reply.read()
        assert reply.status == 200, reply.status
        return time.monotonic() - started

    def answer(place: int, item: str, value: str) -> None:
        answers.append(ask("answers", {"place": place, "item": item, "value": value, "session": "load"}))

    answer(-1, "done", "")
    for place in range(cases):
        volumes.append(ask(f"volume/{place}"))
        for i in range(len(STRUCTURES)):
            answer(place, f"s{i}", "3")
        for item, value in (("guess", "real"), ("confidence", "2"), ("comment", "none"), ("done", "")):
            answer(place, item, value)


if __name__ == "__main__":
    main()
