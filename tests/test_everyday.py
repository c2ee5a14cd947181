"""What a day's work meets: every form of output, workers whose parent is gone, modes of files, help texts."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import toy_head
from slicewise import cli
from slicewise.baselines.shapes import StyleGAN2Config
from slicewise.calibrate import brain_shift
from slicewise.cli.parse import field_docs
from slicewise.data.phantom import PhantomSettings
from slicewise.data.settings import PrepareSettings
from slicewise.data.store import put_volume
from slicewise.evaluation.settings import EvaluateSettings
from slicewise.generate import upward_doubt
from slicewise.io.archive import read_volume
from slicewise.io.dicom_write import write_series
from slicewise.io.nifti import write_nifti
from slicewise.io.peer import PeerSettings
from slicewise.io.tensors import save_tensors
from slicewise.networks.shapes import ICNetConfig, NCSNppConfig, UNetConfig
from slicewise.sampling import GenerateSettings
from slicewise.study.design import StudySettings
from slicewise.volume import Volume
from test_dicom_write import ORIGIN

FORMS = ["series", "enhanced.dcm", "head.nii.gz", "head.nii", "head.png"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, str]:
    """One head as a real series, a synthetic one, NIfTI, and in a store."""
    root = tmp_path_factory.mktemp("sources")
    volume = Volume.regular(toy_head(0, 12, 32), (5.0, 6.0, 6.0))
    write_series(volume, root / "real", synthetic=None, patient_id="P1")
    write_series(volume, root / "synthetic", synthetic=ORIGIN, patient_id="SYN-1")
    write_nifti(volume, root / "ct.nii.gz")
    put_volume(root / "store", volume, id="h0", patient="p0", split="train")
    return {"real": f"{root}/real", "synthetic": f"{root}/synthetic", "nifti": f"{root}/ct.nii.gz",
            "store": f"{root}/store:h0"}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "command, kind",
    [*((c, k) for c in ("export", "calibrate") for k in ("real", "synthetic", "nifti")), ("export", "store")],
)
def test_every_form_of_output_is_written_and_read_again(sources, command, kind, form, tmp_path, capsys):
    out = tmp_path / form
    cli.main([command, sources[kind], "--out", str(out)])
    said = capsys.readouterr().out
    assert f"wrote {out}" in said
    assert ("a real volume" in said) == (command == "calibrate" and kind != "synthetic")
    if form.endswith(".png"):
        assert out.read_bytes()[:4] == b"\x89PNG"
        return
    back = read_volume(out).volume
    assert back.hu.shape == (12, 32, 32)
    assert np.allclose(back.spacing, (5.0, 6.0, 6.0))
    assert (np.array_equal(back.hu, toy_head(0, 12, 32))) == (command == "export")
    assert back.acquisition.synthetic == (kind == "synthetic")


@pytest.mark.parametrize("command", ["export", "calibrate"])
@pytest.mark.parametrize("what", ["taken", "taken.dcm", "head.nrrd"])
def test_an_output_that_cannot_be_is_refused_before_anything_is_computed(
    sources, command, what, tmp_path, monkeypatch, capsys
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    (tmp_path / "taken.dcm").write_text("mine")
    for module in ("slicewise.calibrate.calibrate_volume", "slicewise.data.resample.resample_volume"):
        monkeypatch.setattr(module, lambda *_: pytest.fail("computed in vain"))
    with pytest.raises(SystemExit) as stop:
        cli.main(
            [command, sources["real"], "--out", str(tmp_path / what), *["--slice-mm", "5"] * (command == "export")]
        )
    assert stop.value.code == 1
    assert what in capsys.readouterr().err


def test_how_far_a_brain_moved():
    hu = np.full((12, 64, 64), -1000, np.int16)
    y, x = np.mgrid[:64, :64] - 31.5
    hu[:, np.hypot(x, y) < 24] = 900
    hu[:, np.hypot(x, y) < 21] = 35
    before = Volume.regular(hu, (5.0, 3.0, 3.0))
    moved = hu.copy()
    moved[6][hu[6] == 35] += 12
    mean, worst = brain_shift(before, before.with_hu(moved))
    assert worst == pytest.approx(12)
    assert mean == pytest.approx(1.0, abs=0.2)
    assert brain_shift(before.with_hu(np.full_like(hu, -1000)), before) is None


def test_upward_chains_are_doubted_where_training_went_downward():
    assert "80%" in upward_doubt({"training": {"task": {"last_wanted": 0.8}}})
    assert upward_doubt({"training": {"task": {"last_wanted": 0.5}}}) == "" == upward_doubt({})


def test_workers_end_with_their_parent_however_that_ends(tmp_path):
    code = """
import time, os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from slicewise.workers import start_worker
if __name__ == "__main__":
    pool = ProcessPoolExecutor(2, get_context("spawn"), start_worker)
    jobs = [pool.submit(time.sleep, 0.3) for _ in range(2)]
    print(*[job.result() for job in jobs], *pool._processes, flush=True)
    time.sleep(600)
"""
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in parent.stdout.readline().split()[2:]]
    assert len(workers) == 2
    assert all(_runs(pid) for pid in workers)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_runs(pid) for pid in workers)


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody waits for."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o007, 0o660)])
def test_weights_have_the_mode_that_the_user_wants_for_files(tmp_path, mask, mode):
    import torch

    before = os.umask(mask)
    try:
        save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(2)}, {"kind": "test"})
    finally:
        os.umask(before)
    assert {f.name: f.stat().st_mode & 0o777 for f in tmp_path.iterdir()} == {"w.safetensors": mode, "w.json": mode}


SHOWN = (
    PhantomSettings, PrepareSettings, GenerateSettings, EvaluateSettings, PeerSettings, StudySettings, UNetConfig,
    NCSNppConfig, ICNetConfig, StyleGAN2Config,
)  # fmt: skip


def _kinds(kind: type) -> set[type]:
    inner = [f.type for f in dataclasses.fields(kind) if dataclasses.is_dataclass(f.type)]
    return {kind}.union(*(_kinds(k) for k in inner))


@pytest.mark.parametrize("kind", sorted(set().union(*(_kinds(k) for k in SHOWN)), key=lambda k: k.__name__))
def test_every_setting_has_a_line_of_its_own(kind):
    names = {f.name for f in dataclasses.fields(kind) if not dataclasses.is_dataclass(f.type)}
    assert names <= set(field_docs(kind))


def test_what_follows_from_the_data_is_no_flag(capsys):
    for command, hidden in (
        ("train", "--unet.slices"),
        ("train", "--ncsnpp.image-size"),
        ("train-gan", "--stylegan2.size"),
    ):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        out = capsys.readouterr().out
        assert hidden not in out
        assert hidden.split(".")[0] + "." in out
