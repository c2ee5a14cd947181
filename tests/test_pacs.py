"""Push and pull against Orthanc and dcmqrscp, over DICOMweb and DIMSE: the same HU and UIDs come back, nothing goes
twice, and what is cut in the middle is finished by the next run."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider

import peers
from conftest import toy_head
from slicewise import cli
from slicewise.errors import UserError
from slicewise.io.archive import read_volume
from slicewise.io.dicom_write import SyntheticOrigin, write_series
from slicewise.io.pacs import pull, push
from slicewise.io.peer import PeerSettings, Query
from slicewise.volume import Volume
from test_deidentify import identified

pytestmark = pytest.mark.skipif(bool(peers.missing()), reason=peers.missing())

WEB = f"http://127.0.0.1:{peers.WEB_PORT}/dicom-web"
ORTHANC = f"dicom://ORTHANC@127.0.0.1:{peers.DICOM_PORT}"
DCMTK = f"dicom://DCMQRSCP@127.0.0.1:{peers.QR_PORT}"
ONCE = PeerSettings(retries=0, timeout_s=20)
MOVE = PeerSettings(retries=0, timeout_s=20, receive_port=peers.MOVE_PORT)
QUICK = PeerSettings(retries=5, backoff_s=0.01, timeout_s=5)
WAYS = {
    "web": (WEB, ONCE),
    "orthanc-get": (ORTHANC, ONCE),
    "orthanc-move": (ORTHANC, MOVE),
    "dcmtk-get": (DCMTK, ONCE),
    "dcmtk-move": (DCMTK, MOVE),
}
SLICES = 6


@pytest.fixture(scope="module")
def net() -> Iterator[None]:
    with peers.network_namespace():
        yield


@pytest.fixture(scope="module")
def servers(net: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Server]:
    """Both peers; Orthanc's handle."""
    folder = tmp_path_factory.mktemp("peers")
    with peers.orthanc(folder / "orthanc") as server, peers.dcmqrscp(folder / "dcmqrscp"):
        yield server


@pytest.fixture()
def series(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A synthetic series of 6 slices of random HU under UIDs of this test alone; its patient is `PATIENT-<folder>`."""
    folder = tmp_path / "series"
    make_series(folder, request.node.name)
    return folder


def make_series(folder: Path, name: str, size: int = 48) -> str:
    """Write the series; its Patient ID."""
    hu = np.random.default_rng(len(name)).integers(-1024, 3072, (SLICES, size, size)).astype(np.int16)
    patient = "P-" + re.sub(r"\W+", "-", name)[-60:]  # brackets and the like are patterns to some
    origin = SyntheticOrigin("random", "1", seed=0, description=name)
    write_series(Volume.regular(hu, (5.0, 1.0, 1.5)), folder, synthetic=origin, patient_id=patient)
    return patient


def datasets(folder: Path) -> dict[str, pydicom.Dataset]:
    """Every data set below a folder by its UID."""
    found = (pydicom.dcmread(file) for file in folder.rglob("*.dcm"))
    return {ds.SOPInstanceUID: ds for ds in found}


def of(folder: Path) -> pydicom.Dataset:
    """The header of a series."""
    return pydicom.dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True)


def files(folder: Path) -> list[str]:
    """All files below a folder, hidden ones too."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# There and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_what_is_pushed_is_pulled_the_same(servers, series, tmp_path, way):
    url, settings = WAYS[way]
    header = of(series)
    assert len(push([series], url, settings).sent) == SLICES
    again = push([series], url, settings)
    assert (len(again.sent), len(again.there_before)) == (0, SLICES)
    patient, study, one = header.PatientID, header.StudyInstanceUID, header.SeriesInstanceUID
    queries = {"patient": Query(patient=patient), "study": Query(study=study), "series": Query(study=study, series=one)}
    for name, query in queries.items():
        report = pull(url, query, tmp_path / name, settings)
        assert (report.fetched, report.there_before) == (SLICES, 0)
        assert report.folders == (tmp_path / name / study / one,)
        assert datasets(tmp_path / name) == datasets(series)
    np.testing.assert_array_equal(read_volume(tmp_path / "study").volume.hu, read_volume(series).volume.hu)
    # What lies here already is not fetched again, what is lost is.
    assert pull(url, queries["study"], tmp_path / "study", settings).fetched == 0
    lost = sorted((tmp_path / "study").rglob("*.dcm"))[1:3]
    for file in lost:
        file.unlink()
    report = pull(url, queries["study"], tmp_path / "study", settings)
    assert (report.fetched, report.there_before) == (2, SLICES - 2)
    assert datasets(tmp_path / "study") == datasets(series)


@pytest.mark.parametrize("way", ["web", "orthanc-get", "dcmtk-get"])
def test_a_peer_is_asked_for_what_matches_and_no_more(servers, tmp_path, way):
    url, settings = WAYS[way]
    patients = [make_series(tmp_path / name, f"{way}-{name}") for name in ("a", "b")]
    push([tmp_path / "a", tmp_path / "b"], url, settings)
    (found,) = pull(url, Query(patient=patients[1]), tmp_path / "out", settings, dry_run=True).series
    assert found.series == of(tmp_path / "b").SeriesInstanceUID
    assert found.images in (SLICES, None)
    assert not (tmp_path / "out").exists()
    nothing = [Query(patient="nobody"), Query(patient=patients[0], modality="MR"), Query(study="1.2.3.4.5")]
    for query in nothing:
        with pytest.raises(UserError, match=r"no (CT|MR) series matches"):
            pull(url, query, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["web", "orthanc-get", "dcmtk-get"])
@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless], ids=["jpeg-ls", "jpeg-2000", "rle"])
def test_compressed_files_keep_their_hu(servers, series, tmp_path, way, syntax):
    """Orthanc keeps every syntax. dcmqrscp, as it is set up, takes JPEG-LS alone: the rest goes to it decoded."""
    url, settings = WAYS[way]
    packed = tmp_path / "packed"
    packed.mkdir()
    for file in series.iterdir():
        ds = pydicom.dcmread(file)
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(packed / file.name)
    assert len(push([packed], url, settings).sent) == SLICES
    pull(url, Query(patient=of(series).PatientID), tmp_path / "out", settings)
    kept = {ds.file_meta.TransferSyntaxUID == syntax for ds in datasets(tmp_path / "out").values()}
    assert kept == {way != "dcmtk-get" or syntax == JPEGLSLossless}
    assert datasets(tmp_path / "out").keys() == datasets(series).keys()
    np.testing.assert_array_equal(read_volume(tmp_path / "out").volume.hu, read_volume(series).volume.hu)


def test_an_answer_that_comes_at_once_is_not_lost(servers, series, tmp_path, monkeypatch):
    """At whichever line the machine may stop pynetdicom's reactor, which is told to pause, and who asks."""

    class Late(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            was_set = super().wait(timeout)
            time.sleep(0.02)
            return was_set

    begin, send = Association.__init__, DIMSEServiceProvider.send_msg

    def begin_late(association: Association, *args: object, **kwargs: object) -> None:
        begin(association, *args, **kwargs)
        association._reactor_checkpoint = Late()
        association._reactor_checkpoint.set()

    def send_and_stop(dimse: DIMSEServiceProvider, *args: object) -> None:
        send(dimse, *args)
        time.sleep(0.05)

    monkeypatch.setattr(Association, "__init__", begin_late)
    monkeypatch.setattr(DIMSEServiceProvider, "send_msg", send_and_stop)
    settings = PeerSettings(retries=0, timeout_s=2)
    header = of(series)
    query = Query(study=header.StudyInstanceUID, series=header.SeriesInstanceUID)
    assert len(push([series], DCMTK, settings).sent) == SLICES
    assert pull(DCMTK, query, tmp_path / "back", settings).fetched == SLICES


@pytest.mark.parametrize("way", ["web", "orthanc-get", "dcmtk-get"])
def test_what_storescu_sent_is_not_sent_again(servers, series, tmp_path, way):
    url, settings = WAYS[way]
    title, port = ("DCMQRSCP", peers.QR_PORT) if way == "dcmtk-get" else ("ORTHANC", peers.DICOM_PORT)
    half = sorted(map(str, series.iterdir()))[::2]
    subprocess.run(["storescu", "-aec", title, "127.0.0.1", str(port), *half], check=True)
    report = push([series], url, settings)
    assert (len(report.sent), len(report.there_before)) == (SLICES - len(half), len(half))
    pull(url, Query(study=of(series).StudyInstanceUID), tmp_path / "out", settings)
    assert datasets(tmp_path / "out") == datasets(series)
    # And dcmtk finds what we sent.
    keys = ["-k", "QueryRetrieveLevel=IMAGE", "-k", f"StudyInstanceUID={of(series).StudyInstanceUID}"]
    keys += ["-k", f"SeriesInstanceUID={of(series).SeriesInstanceUID}", "-k", "SOPInstanceUID"]
    found = subprocess.run(
        ["findscu", "-S", "-aec", title, "127.0.0.1", str(port), *keys], check=True, capture_output=True, text=True
    )
    assert (found.stdout + found.stderr).count("(0008,0018)") == SLICES


@pytest.mark.parametrize("way", ["web", "orthanc-get"])
def test_what_is_pulled_can_be_stripped_on_the_way(servers, tmp_path, way):
    url, settings = WAYS[way]
    paths = identified(tmp_path / "in", seed=len(way) + 50, slices=SLICES)
    for path in paths:  # Orthanc takes no odd group 6000 rows
        ds = pydicom.dcmread(path)
        del ds[0x60003000], ds[0x60000010]
        ds.save_as(path)
    push([tmp_path / "in"], url, settings)
    study = pydicom.dcmread(paths[0]).StudyInstanceUID
    assert pull(url, Query(study=study), tmp_path / "out", settings, deidentify=True).fetched == SLICES
    again = pull(url, Query(study=study), tmp_path / "out", settings, deidentify=True)
    assert (again.fetched, again.there_before) == (0, SLICES)
    pulled = sorted((tmp_path / "out").rglob("*.dcm"))
    assert len(pulled) == SLICES
    assert len({p.parent for p in pulled}) == 1
    for path in pulled:
        assert b"SECRET" not in path.read_bytes()
        assert study not in str(path)
        ds = pydicom.dcmread(path)
        assert ds.PatientIdentityRemoved == "YES"
        assert path.stem == ds.SOPInstanceUID
        assert path.parent.name == ds.SeriesInstanceUID
        assert path.parent.parent.name == ds.StudyInstanceUID
    np.testing.assert_array_equal(read_volume(tmp_path / "out").volume.hu, read_volume(tmp_path / "in").volume.hu)


def test_from_a_run_through_a_pacs_into_a_store(servers, tmp_path, capsys):
    """The commands themselves, on what looks like a run of `slicewise generate`."""
    run = tmp_path / "run"
    (run / "dicom").mkdir(parents=True)
    (run / "generate.json").write_text("{}")
    (run / "other.dcm").write_text("not part of it")
    for n in range(2):
        volume = Volume.regular(toy_head(n, slices=12, size=32), (5.0, 7.5, 7.5))
        origin = SyntheticOrigin("toy", "1", seed=3, volume=n)
        write_series(volume, run / "dicom" / f"volume-{n:04d}", synthetic=origin, patient_id=f"SYN-RUN-{n}")
    assert main("push", run, "--to", WEB, "--dry-run") == 0
    assert "would send 24 images, 0 already there" in capsys.readouterr().out
    assert main("push", run, "--to", WEB) == 0
    assert "sent 24 images, 0 already there" in capsys.readouterr().out
    assert main("push", run, "--to", ORTHANC) == 0
    assert "sent 0 images, 24 already there" in capsys.readouterr().out
    assert main("pull", ORTHANC, "--patient", "SYN-RUN-1", "--out", tmp_path / "in", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "would pull  CT series 2.25." in out
    assert "12 images" in out
    for n in range(2):
        assert main("pull", ORTHANC, "--patient", f"SYN-RUN-{n}", "--out", tmp_path / "in") == 0
        assert "1 series in" in capsys.readouterr().out
    assert main("prepare", tmp_path / "in", "--out", tmp_path / "store", "--size", "32", "--workers", "1") == 0
    assert "prepared 2 volumes" in capsys.readouterr().out


def main(*argv: object) -> int:
    """Exit status of a command."""
    try:
        cli.main([str(a) for a in argv])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


# Cut in the middle -------------------------------------------------------------------------------------------------


class Cutter:
    """A TCP relay to a port that closes, or stalls, a connection once so many bytes went `up` or `down` through all.
    It listens on a port of its own, or the one given (`at`)."""

    def __init__(self, port: int, limit: int, down: bool, stall: bool = False, times: int = 1, at: int = 0) -> None:
        self.target, self.limit, self.down, self.stall, self.times = port, limit, down, stall, times
        self.passed = self.cuts = 0
        self.listener = socket.create_server(("127.0.0.1", at))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # nobody listens there, so nobody does here
                client.close()
                continue
            for source, sink, counts in ((client, server, not self.down), (server, client, self.down)):
                threading.Thread(target=self._relay, args=(source, sink, counts), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        try:
            while data := source.recv(4096):
                self.passed += len(data) * counts
                if counts and self.passed > self.limit and self.cuts < self.times:
                    if self.stall:
                        time.sleep(60)
                    self.cuts += 1
                    self.passed = 0
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def __enter__(self) -> "Cutter":
        return self

    def __exit__(self, *_: object) -> None:
        """Free the port, which `close` alone does not while `accept` waits on it."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def url(self, url: str) -> str:
        """The address of a peer, through the relay."""
        return url.replace(f":{self.target}", f":{self.port}")


PORTS = {"web": peers.WEB_PORT, "orthanc-get": peers.DICOM_PORT, "dcmtk-get": peers.QR_PORT}


@pytest.mark.parametrize("way", PORTS)
def test_a_push_that_is_cut_goes_on(servers, series, tmp_path, way):
    url, _ = WAYS[way]
    many = tmp_path / "many"
    patient = make_series(many, f"many-{way}", size=128)  # 32 KiB a slice
    relay = Cutter(PORTS[way], limit=110_000, down=False)
    with pytest.raises(UserError, match="run it again later to resume") as info:
        push([many], relay.url(url), ONCE)
    assert "\n" not in str(info.value)
    assert relay.cuts == 1
    report = push([many], url, ONCE)
    assert len(report.sent) + len(report.there_before) == SLICES
    assert report.sent
    if way != "web":  # over DICOMweb all went in one request
        assert report.there_before
    pull(url, Query(patient=patient), tmp_path / "out", ONCE)
    assert datasets(tmp_path / "out") == datasets(many)


@pytest.mark.parametrize("way", PORTS)
def test_a_pull_that_is_cut_shows_no_half_series_and_goes_on(servers, tmp_path, way):
    url, _ = WAYS[way]
    patient = make_series(tmp_path / "many", f"pull-{way}", size=128)
    push([tmp_path / "many"], url, ONCE)
    relay = Cutter(PORTS[way], limit=110_000, down=True)
    with pytest.raises(UserError, match="run it again later to resume"):
        pull(relay.url(url), Query(patient=patient), tmp_path / "out", ONCE)
    kept = files(tmp_path / "out")
    assert 0 < len(kept) < SLICES
    assert all("/." in name and not name.endswith(".tmp") for name in kept)
    for name in kept:
        assert len(pydicom.dcmread(tmp_path / "out" / name).PixelData) == 2 * 128 * 128
    with pytest.raises(UserError, match="no DICOM series"):
        read_volume(tmp_path / "out")
    report = pull(url, Query(patient=patient), tmp_path / "out", ONCE)
    assert (report.fetched, report.there_before) == (SLICES - len(kept), len(kept))
    assert datasets(tmp_path / "out") == datasets(tmp_path / "many")
    assert len(files(tmp_path / "out")) == SLICES


@pytest.mark.parametrize("url", [ORTHANC, DCMTK], ids=["orthanc", "dcmtk"])
def test_a_move_that_is_cut_shows_no_half_series_and_goes_on(servers, tmp_path, url):
    """By C-MOVE the images come over an association that the peer opens to us: it is that one which is cut."""
    patient = make_series(tmp_path / "many", f"move-{url}", size=128)
    push([tmp_path / "many"], url, ONCE)
    behind = PeerSettings(retries=0, timeout_s=20, receive_port=11300)
    with Cutter(11300, limit=110_000, down=False, at=peers.MOVE_PORT) as relay:
        with pytest.raises(UserError, match="run it again later to resume"):
            pull(url, Query(patient=patient), tmp_path / "out", behind)
        assert relay.cuts == 1
    kept = files(tmp_path / "out")
    assert 0 < len(kept) < SLICES
    assert all("/." in name and not name.endswith(".tmp") for name in kept)
    report = pull(url, Query(patient=patient), tmp_path / "out", MOVE)
    assert (report.fetched, report.there_before) == (SLICES - len(kept), len(kept))
    assert datasets(tmp_path / "out") == datasets(tmp_path / "many")
    assert len(files(tmp_path / "out")) == SLICES
    # And one run gets over a cut by itself.
    again = PeerSettings(retries=5, backoff_s=0.01, timeout_s=5, receive_port=11300)
    with Cutter(11300, limit=110_000, down=False, at=peers.MOVE_PORT) as relay:
        pull(url, Query(patient=patient), tmp_path / "again", again)
        assert relay.cuts == 1
    assert datasets(tmp_path / "again") == datasets(tmp_path / "many")


@pytest.mark.parametrize("way", PORTS)
def test_one_run_gets_over_several_cuts(servers, tmp_path, way):
    url, _ = WAYS[way]
    patient = make_series(tmp_path / "many", f"cuts-{way}", size=128)
    relay = Cutter(PORTS[way], limit=90_000, down=False, times=2)
    assert len(push([tmp_path / "many"], relay.url(url), QUICK).sent) <= SLICES
    assert relay.cuts == 2
    relay = Cutter(PORTS[way], limit=90_000, down=True, times=2)
    pull(relay.url(url), Query(patient=patient), tmp_path / "out", QUICK)
    assert relay.cuts == 2
    assert datasets(tmp_path / "out") == datasets(tmp_path / "many")


@pytest.mark.parametrize("way", ["web", "orthanc-get"])
def test_orthanc_killed_in_the_middle_of_a_push(servers, tmp_path, way):
    url, _ = WAYS[way]
    make_series(tmp_path / "many", f"kill-{way}", size=64)
    settings = PeerSettings(retries=20, backoff_s=0.2, timeout_s=20)
    killed = []

    def kill(done: int, total: int) -> None:
        if not killed and done >= (0 if way == "web" else 2):
            servers.kill()
            killed.append(threading.Thread(target=servers.start))
            killed[0].start()

    report = push([tmp_path / "many"], url, settings, progress=kill)
    killed[0].join()
    assert len(report.sent) + len(report.there_before) == SLICES
    pull(url, Query(study=of(tmp_path / "many").StudyInstanceUID), tmp_path / "out", ONCE)
    assert datasets(tmp_path / "out") == datasets(tmp_path / "many")


def test_a_pull_killed_in_the_middle_goes_on(servers, tmp_path):
    patient = make_series(tmp_path / "many", "killed-pull", size=128)
    push([tmp_path / "many"], WEB, ONCE)
    relay = Cutter(peers.DICOM_PORT, limit=110_000, down=True, stall=True)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "slicewise", "pull", relay.url(ORTHANC), "--patient", patient, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(files(out) if out.exists() else []) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = [name for name in files(out) if name.endswith(".dcm")]
    assert 0 < len(there) < SLICES
    assert all("/." in name for name in there)
    report = pull(ORTHANC, Query(patient=patient), out, ONCE)
    assert report.there_before == len(there)
    assert datasets(out) == datasets(tmp_path / "many")


def test_a_full_disk_stops_a_pull_in_one_line(servers, series, tmp_path):
    push([series], WEB, ONCE)
    for url, way in ((WEB, "web"), (ORTHANC, "dimse")):
        out = tmp_path / way
        code = (
            "import sys, resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
            "from slicewise import cli; cli.main(sys.argv[1:])\n"
        )
        command = [sys.executable, "-c", code, "pull", url, "--patient", of(series).PatientID, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert "cannot write" in done.stderr
        assert "Traceback" not in done.stderr
        assert files(out) == []


# TLS, credentials, and who is refused ------------------------------------------------------------------------------

USER, SECRET = "reader", "pa55-w0rd"


@pytest.fixture(scope="module")
def secured(net: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An Orthanc over TLS, for one user; the folder of its certificate."""
    folder = tmp_path_factory.mktemp("secured")
    tls = peers.make_certificate(folder / "tls")
    with peers.orthanc(folder / "orthanc", 8043, 4343, tls, USER, SECRET), peers.tls_front(8143, 8043, tls):
        yield tls


def test_tls_and_password(secured, series, tmp_path, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    web, dimse = "https://localhost:8143/dicom-web", "dicoms://ORTHANC@localhost:4343"
    trusted = PeerSettings(retries=0, timeout_s=20, ca=secured / "cert.pem")
    for url in (web, dimse):
        with pytest.raises(UserError, match=r"certificate is not trusted .*give PeerSettings.ca=FILE"):
            push([series], url, ONCE)
    with pytest.raises(UserError, match="does not accept these credentials"):
        push([series], web, trusted)
    monkeypatch.setenv("SLICEWISE_PACS_USER", USER)
    monkeypatch.setenv("SLICEWISE_PACS_PASSWORD", "wrong")
    with pytest.raises(UserError, match="does not accept these credentials") as info:
        push([series], web, trusted)
    assert "wrong" not in str(info.value)
    monkeypatch.delenv("SLICEWISE_PACS_USER")
    monkeypatch.delenv("SLICEWISE_PACS_PASSWORD")
    file = tmp_path / "credentials.toml"
    file.write_text(f'user = "{USER}"\npassword = "{SECRET}"\n')
    file.chmod(0o600)
    mine = PeerSettings(retries=0, timeout_s=20, ca=secured / "cert.pem", credentials=file)
    assert len(push([series], web, mine).sent) == SLICES
    assert len(push([series], dimse, mine).there_before) == SLICES
    for url, name in ((web, "web"), (dimse, "dimse")):
        pull(url, Query(patient=of(series).PatientID), tmp_path / name, mine)
        assert datasets(tmp_path / name) == datasets(series)
    with pytest.raises(UserError, match=r"not a DICOM port|TLS") as info:
        push([series], "dicom://ORTHANC@localhost:4343", ONCE)
    assert "\n" not in str(info.value)
    assert SECRET not in caplog.text
    assert "wrong" not in caplog.text


def test_one_line_says_what_is_wrong_with_the_peer(servers, series, tmp_path, capsys):
    cases = {
        "dicom://WRONG@127.0.0.1:4242": "rejects the association (called AE title not recognised); check the AE titles",
        "dicom://ORTHANC@127.0.0.1:8042": "not a DICOM port",
        "dicom://ORTHANC@127.0.0.1:9": "connection refused; run it again later",
        "dicom://ORTHANC@no-such-host.invalid:104": "host",
        "http://127.0.0.1:8042/wrong": "no DICOMweb service there (HTTP status 404); fix the path",
        "http://127.0.0.1:9/dicom-web": "connection refused; run it again later",
        "http://no-such-host.invalid:80/dicom-web": "host",
        "https://127.0.0.1:8042/dicom-web": "TLS",
        "dicoms://ORTHANC@127.0.0.1:4242": "TLS",
    }
    flags = ["--retries", "2", "--backoff-s", "0", "--timeout-s", "5"]
    for url, what in cases.items():
        for command in (["push", series, "--to", url], ["pull", url, "--patient", "x", "--out", tmp_path / "out"]):
            assert main(*command, *flags) == 1
            err = capsys.readouterr().err.strip()
            assert "\n" not in err, err
            assert err.startswith(f"slicewise {command[0]}: {url.split('/wrong')[0]}"), err
            assert what in err
    assert not (tmp_path / "out").exists()
    nobody = PeerSettings(retries=0, ae_title="NOBODY", receive_port=11200)
    for url, what in ((DCMTK, "does not know our AE title NOBODY"), (ORTHANC, "C-MOVE to NOBODY, which it may not")):
        push([series], url, ONCE)
        with pytest.raises(UserError, match=what):
            pull(url, Query(patient=of(series).PatientID), tmp_path / "out", nobody)
    with socket.create_server(("127.0.0.1", 11201)):
        with pytest.raises(UserError, match="receive_port=11201: cannot listen"):
            settings = PeerSettings(retries=0, receive_port=11201)
            pull(ORTHANC, Query(patient=of(series).PatientID), tmp_path / "out", settings)
    assert files(tmp_path / "out") == [] if (tmp_path / "out").exists() else True


def test_proxies_and_their_passwords_stay_out_of_messages(net, series, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("http_proxy", f"http://someone:{SECRET}@127.0.0.1:9")
    with pytest.raises(UserError, match="the proxy that the environment names") as info:
        push([series], "http://pacs.example/dicom-web", ONCE)
    assert SECRET not in str(info.value)
    assert SECRET not in caplog.text


def test_nothing_listens_where_it_should_not(servers):
    """The peers take connections on all interfaces; here there is only loopback."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split(": ")[1] for line in links] == ["lo"]
    assert shutil.which("Orthanc")
    assert os.geteuid() == 0
