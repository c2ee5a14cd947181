"""Images a second to and from Orthanc and dcmqrscp on this machine: slicewise push and pull against DCMTK's programs.

    python bench/pacs.py [--images 100] [--repeats 3]        (root, Linux: the peers run in a network namespace)

Slices of 512 x 512 pixels, uncompressed. Every figure is the median of the repeats, each with a series of its own;
start-up of the programs is in the figures of both sides (Python's is about a second) except where "in process" says so.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pydicom

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import peers
from slicewise.io.dicom_write import SyntheticOrigin, write_series
from slicewise.io.pacs import pull, push
from slicewise.io.peer import PeerSettings, Query
from slicewise.volume import Volume

WEB = f"http://127.0.0.1:{peers.WEB_PORT}/dicom-web"
ORTHANC = ("ORTHANC", peers.DICOM_PORT)
DCMTK = ("DCMQRSCP", peers.QR_PORT)
MOVE = PeerSettings(receive_port=peers.MOVE_PORT)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if reason := peers.missing():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as scratch, peers.network_namespace():
        folder = Path(scratch)
        with peers.orthanc(folder / "orthanc"), peers.dcmqrscp(folder / "dcmqrscp"):
            print(f"{arguments.images} images of 512 x 512, median of {arguments.repeats}")
            for name, seconds in measure(folder, arguments.images, arguments.repeats).items():
                rate = arguments.images / median(seconds)
                print(f"{name:48} {rate:8.0f} images/s {rate * 0.524:8.0f} MB/s")


def measure(folder: Path, images: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, one a repeat."""
    found: dict[str, list[float]] = {}
    for n in range(repeats):
        for name, send in SEND.items():
            series = make_series(folder / f"{name.replace('/', '-')} {n}".replace(" ", "_"), f"{name} {n}", images)
            found.setdefault(name, []).append(timed(send, series))
        for name, (where, fetch) in FETCH.items():
            series = make_series(folder / f"{name.replace('/', '-')} {n}".replace(" ", "_"), f"{name} {n}", images)
            storescu(series, where)
            out = series.with_name(f"{series.name}-back")
            out.mkdir()
            uid = pydicom.dcmread(next(series.iterdir()), stop_before_pixels=True).StudyInstanceUID
            found.setdefault(name, []).append(timed(fetch, uid, out))
            came = sum(1 for p in out.rglob("*") if p.is_file())
            assert came == images, f"{name}: {came} of {images} came"
    return found


def make_series(folder: Path, name: str, images: int) -> Path:
    """A head-sized ellipsoid with noise, under UIDs of its own."""
    rng = np.random.default_rng(len(name))
    y, x = np.meshgrid(*[np.linspace(-1.2, 1.2, 512)] * 2, indexing="ij")
    head = np.where(np.hypot(y, x) < 1, 35, -1000) + rng.normal(0, 5, (512, 512))
    hu = np.repeat(np.rint(head).astype(np.int16)[None], images, 0)
    origin = SyntheticOrigin("bench", "1", seed=0, description=name)
    write_series(Volume.regular(hu, (1.0, 0.5, 0.5)), folder, synthetic=origin, patient_id="BENCH")
    return folder


def timed(action: Callable[..., object], *arguments: object) -> float:
    """Seconds that an action takes."""
    start = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - start


def url(where: tuple[str, int]) -> str:
    """The address of a peer."""
    return f"dicom://{where[0]}@127.0.0.1:{where[1]}"


def storescu(series: Path, where: tuple[str, int]) -> None:
    """DCMTK's storescu."""
    subprocess.run(["storescu", "-aec", where[0], "+sd", "127.0.0.1", str(where[1]), str(series)], check=True)


def getscu(study: str, out: Path, where: tuple[str, int]) -> None:
    """DCMTK's getscu."""
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"]
    subprocess.run(["getscu", "-S", "-aec", where[0], *keys, "-od", str(out), "127.0.0.1", str(where[1])], check=True)


def command(*arguments: str) -> None:
    """The slicewise program."""
    subprocess.run([sys.executable, "-m", "slicewise", *arguments], check=True, capture_output=True)


SEND: dict[str, Callable[[Path], object]] = {
    "storescu -> Orthanc": lambda s: storescu(s, ORTHANC),
    "slicewise push, DIMSE -> Orthanc": lambda s: command("push", str(s), "--to", url(ORTHANC)),
    "slicewise push, DIMSE -> Orthanc, in process": lambda s: push([s], url(ORTHANC)),
    "slicewise push, DICOMweb -> Orthanc, in process": lambda s: push([s], WEB),
    "storescu -> dcmqrscp": lambda s: storescu(s, DCMTK),
    "slicewise push, DIMSE -> dcmqrscp, in process": lambda s: push([s], url(DCMTK)),
}
FETCH: dict[str, tuple[tuple[str, int], Callable[[str, Path], object]]] = {
    "getscu <- Orthanc": (ORTHANC, lambda u, o: getscu(u, o, ORTHANC)),
    "slicewise pull, C-GET <- Orthanc, in process": (ORTHANC, lambda u, o: pull(url(ORTHANC), Query(study=u), o)),
    "slicewise pull, C-MOVE <- Orthanc, in process": (
        ORTHANC, lambda u, o: pull(url(ORTHANC), Query(study=u), o, MOVE),
    ),
    "slicewise pull, DICOMweb <- Orthanc, in process": (ORTHANC, lambda u, o: pull(WEB, Query(study=u), o)),
    "getscu <- dcmqrscp": (DCMTK, lambda u, o: getscu(u, o, DCMTK)),
    "slicewise pull, C-GET <- dcmqrscp, in process": (DCMTK, lambda u, o: pull(url(DCMTK), Query(study=u), o)),
}  # fmt: skip

if __name__ == "__main__":
    main()
