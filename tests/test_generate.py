"""Generating cohorts: what is written is what was made, a run resumes where it stopped, and nothing unfit gets in."""

import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from slicewise.ascii import chain
from slicewise.calibrate import calibrate_volume
from slicewise.checkpoint import load_denoiser, load_icnet, save_model
from slicewise.diffusion.denoiser import Recipe
from slicewise.errors import UserError
from slicewise.generate import _shares, _side_by_side, generate, load_seed, results
from slicewise.hu import HUScale
from slicewise.io.archive import read_volume
from slicewise.io.nifti import read_nifti, write_nifti
from slicewise.networks.icnet import ICNet
from slicewise.networks.shapes import ICNetConfig, UNetConfig
from slicewise.networks.unet import UNet
from slicewise.sampling import ChainSettings, GenerateSettings
from slicewise.volume import Volume

# Plain, since a local network with random weights draws no air, and a volume without air is not read back as HU.
TINY = UNetConfig(channels=(8, 16), blocks=(1, 1), attention=(False, True), embedding=16, local=False)
SIZE, SPACING = 16, (5.0, 12.0, 12.0)
SETTINGS = GenerateSettings(
    count=3, batch=2, seed=5, calibrate="off", core="float32", device="cpu", chain=ChainSettings(steps=3, slices=3)
)


def _checkpoint(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    net = UNet(TINY)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    recipe = Recipe(3, False, SIZE, SPACING, HUScale(companding="half"), 0.6, 0.002, 20.0, True, 3, 6)
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(TINY).items()}
    meta = {"recipe": recipe.to_dict(), "step": 7, "data": "abc"}
    save_model(path, "unet", config, net.state_dict(), meta)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return _checkpoint(tmp_path_factory.mktemp("checkpoint") / "weights.safetensors")


@pytest.fixture(scope="module")
def icnet(tmp_path_factory) -> Path:
    """An IC-Net that shifts: its last layers are random, so that calibration does something."""
    path = tmp_path_factory.mktemp("icnet") / "weights.safetensors"
    torch.manual_seed(0)
    config = ICNetConfig(channels=4, levels=2, fold=2)
    net = ICNet(config)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    save_model(path, "icnet", vars(config), net.state_dict(), {"step": 3})
    return path


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    generate(checkpoint, out, SETTINGS)
    return out


def test_as_many_series_as_asked_for_and_they_hold_the_chains_hu(run, checkpoint):
    assert sorted(p.name for p in (run / "dicom").iterdir()) == ["volume-0000", "volume-0001", "volume-0002"]
    denoiser = load_denoiser(checkpoint)
    for batch in ([0, 1], [2]):
        made = np.stack(list(chain(denoiser, SETTINGS.chain, 5, batch)), axis=1)
        for hu, number in zip(made, batch):
            name = f"volume-{number:04d}"
            volume = read_volume(run / "dicom" / name).volume
            assert np.array_equal(volume.hu, hu)
            assert np.array_equal(read_nifti(run / f"nifti/{name}.nii.gz").hu, hu)
            assert np.allclose(volume.spacing, SPACING)
    assert len(np.unique(made)) > 50, "the chain of this network makes something"


def test_threads_share_a_batch_and_change_no_voxel(run, checkpoint, tmp_path):
    before, told = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        generate(checkpoint, tmp_path / "out", replace(SETTINGS, batch=3), progress=lambda *done: told.append(done))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert told == [(0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0)]
    for (_, _, one), (_, _, other) in zip(results(run, 3), results(tmp_path / "out", 3)):
        assert np.array_equal(one.hu, other.hu)


def test_chains_of_different_length_run_side_by_side_each_to_its_end():
    def slices(last):
        yield from (np.full((2, 4, 4), i, np.int16) for i in range(last))

    told = []
    made = _side_by_side([slices(3), slices(5)], told.append)
    assert [m[0, :, 0, 0].tolist() for m in made] == [[0, 1, 2], [0, 1, 2, 3, 4]]
    assert told == [1, 2, 3, 4, 5]
    assert [_shares(list(range(5)), n) for n in (1, 2, 8)] == [
        [[*range(5)]],
        [[0, 1, 2], [3, 4]],
        [[i] for i in range(5)],
    ]


def test_volumes_say_that_they_are_synthetic_and_of_different_patients(run):
    headers = [pydicom.dcmread(next((run / "dicom" / f"volume-{i:04d}").iterdir())) for i in range(3)]
    assert all(h[0x0008, 0x001C].value == "YES" for h in headers)
    for tag in ("PatientID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({h[tag].value for h in headers}) == 3, tag


def test_generate_json_says_what_decided_the_voxels(run):
    said = json.loads((run / "generate.json").read_text())
    assert said["model_step"] == 7
    assert said["nfe_per_slice"] == 3
    assert said["volumes"] == 3
    assert said["settings"]["seed"] == 5
    assert said["settings"]["chain"]["slices"] == 3
    assert len(said["model_sha256"]) == 64
    assert said["seconds_per_volume"] >= 0


def test_a_run_goes_on_with_what_is_missing_only(run, checkpoint, tmp_path):
    import shutil

    out = tmp_path / "out"
    shutil.copytree(run, out)
    before = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in (out / "dicom").rglob("*.dcm")}
    shutil.rmtree(out / "dicom" / "volume-0001")
    told = []
    generate(checkpoint, out, replace(SETTINGS, count=4), progress=lambda *done: told.append(done))
    after = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in (out / "dicom").rglob("*.dcm")}
    assert len(after) == 12
    assert told[-1] == (2, 0)
    for file, (when, content) in before.items():
        assert after[file][1] == content, "the same voxels and UIDs, made again or not"
        assert (after[file][0] == when) == ("volume-0001" not in str(file))
    assert json.loads((out / "generate.json").read_text())["volumes"] == 4


def test_an_interrupted_run_holds_whole_volumes_only(checkpoint, tmp_path):
    def stop(volumes, slices):
        if (volumes, slices) == (2, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(checkpoint, tmp_path / "out", SETTINGS, progress=stop)
    assert sorted(p.name for p in (tmp_path / "out" / "dicom").iterdir()) == ["volume-0000", "volume-0001"]
    generate(checkpoint, tmp_path / "out", SETTINGS)
    assert len(list((tmp_path / "out" / "dicom").iterdir())) == 3


@pytest.mark.parametrize(
    "change",
    [{"seed": 6}, {"chain": replace(SETTINGS.chain, steps=4)}, {"chain": replace(SETTINGS.chain, sampler="heun")}],
)
def test_a_folder_of_other_settings_is_refused(change, run, checkpoint):
    with pytest.raises(UserError, match="other settings"):
        generate(checkpoint, run, replace(SETTINGS, **change))


def test_a_folder_of_another_checkpoint_or_of_anything_else_is_refused(run, checkpoint, tmp_path):
    other = _checkpoint(tmp_path / "other" / "weights.safetensors", seed=1)
    with pytest.raises(UserError, match="another checkpoint"):
        generate(other, run, SETTINGS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        generate(checkpoint, tmp_path / "mine", SETTINGS)


@pytest.mark.parametrize(
    "change, what", [({"count": 0}, "count=0"), ({"batch": 0}, "batch=0"), ({"calibrate": "after"}, "icnet=FILE")]
)
def test_settings_that_cannot_work_write_nothing(change, what, checkpoint, tmp_path):
    with pytest.raises(UserError, match=what):
        generate(checkpoint, tmp_path / "out", replace(SETTINGS, **change))
    assert not (tmp_path / "out").exists()


def test_calibration_after_keeps_the_raw_volume_and_applies_icnet(run, checkpoint, icnet, tmp_path):
    out = tmp_path / "out"
    generate(checkpoint, out, replace(SETTINGS, count=1, calibrate="after"), icnet)
    (name, raw, final), *rest = results(out, 1)
    assert name == "volume-0000"
    assert not rest
    assert raw is not None
    expected = calibrate_volume(load_icnet(icnet), raw)
    assert np.array_equal(final.hu, expected.hu)
    assert not np.array_equal(final.hu, raw.hu)
    uncalibrated = read_volume(run / "dicom" / "volume-0000").volume
    assert np.abs(raw.hu.astype(int) - uncalibrated.hu).max() <= 1  # another batch shape


def test_calibration_inside_changes_what_follows(run, checkpoint, icnet, tmp_path):
    out = tmp_path / "out"
    generate(checkpoint, out, replace(SETTINGS, count=2, calibrate="inside"), icnet)
    (_, raw, first), _ = results(out, 2)
    assert raw is None
    assert not np.array_equal(first.hu, read_volume(run / "dicom" / "volume-0000").volume.hu)
    with pytest.raises(UserError, match="another checkpoint"):  # another IC-Net is another run
        other = tmp_path / "icnet.safetensors"
        net, config = ICNet(ICNetConfig(channels=4, levels=2, fold=2)), ICNetConfig(channels=4, levels=2, fold=2)
        save_model(other, "icnet", vars(config), net.state_dict(), {"step": 3})
        generate(checkpoint, out, replace(SETTINGS, count=2, calibrate="inside"), other)


# Going on from a real volume ---------------------------------------------------------------------------------------


def _real(path: Path, size: int = SIZE, spacing=SPACING, slices: int = 9) -> Path:
    from conftest import toy_head

    write_nifti(Volume.regular(toy_head(3, slices, size), spacing), path)
    return path


@pytest.mark.parametrize("direction, rows", [("down", slice(4, 5)), ("up", slice(4, 5))])
def test_a_chain_from_a_real_slice_lies_in_its_place_and_holds_it_on_request_only(
    direction, rows, checkpoint, icnet, tmp_path
):
    source = _real(tmp_path / "real.nii.gz")
    settings = replace(
        SETTINGS, count=1, seed_volume=source, seed_slice=4, chain=replace(SETTINGS.chain, direction=direction)
    )
    generate(checkpoint, tmp_path / "kept", replace(settings, keep_seed=True))
    generate(checkpoint, tmp_path / "out", settings)
    generate(checkpoint, tmp_path / "calibrated", replace(settings, calibrate="after"), icnet)
    made, real = read_volume(tmp_path / "kept" / "dicom" / "volume-0000").volume, read_nifti(source)
    assert len(made.hu) == 4
    at = 0 if direction == "down" else 3
    assert np.array_equal(made.hu[at], real.hu[4])
    assert made.acquisition.real_slices == (at,)
    first = 4 if direction == "down" else 1
    np.testing.assert_allclose(made.positions, real.positions[first : first + 4], atol=1e-3)
    np.testing.assert_allclose(made.affine[:3, :3], real.affine[:3, :3], atol=1e-3)
    for run in ("out", "calibrated"):
        for _, raw, alone in results(tmp_path / run, 1):
            np.testing.assert_allclose(alone.positions, np.delete(made.positions, at, 0), atol=1e-3)
            assert raw is None or raw.hu.shape == alone.hu.shape
            assert not any(np.array_equal(plane, other) for plane in alone.hu for other in real.hu)
        header = pydicom.dcmread(next((tmp_path / run / "dicom" / "volume-0000").iterdir()))
        assert "no slice is from that scan" in header.DerivationDescription
        assert "not a patient" not in str(header)
    assert read_nifti(tmp_path / "kept" / "nifti" / "volume-0000.nii.gz").acquisition.real_slices == (at,)


def test_a_synthetic_seed_makes_no_real_slice(checkpoint, tmp_path):
    generate(checkpoint, tmp_path / "first", replace(SETTINGS, count=1, chain=replace(SETTINGS.chain, slices=6)))
    seed = tmp_path / "first" / "dicom" / "volume-0000"
    generate(checkpoint, tmp_path / "out", replace(SETTINGS, count=1, seed_volume=seed, seed_slice=2, keep_seed=True))
    made = read_volume(tmp_path / "out" / "dicom" / "volume-0000").volume
    assert np.array_equal(made.hu[0], read_volume(seed).volume.hu[2])
    assert made.acquisition.real_slices == ()
    headers = [pydicom.dcmread(f) for f in (tmp_path / "out" / "dicom" / "volume-0000").iterdir()]
    assert all(h.SyntheticData == "YES" and "not a patient" in h.DerivationDescription for h in headers)


def test_where_in_the_head_a_seed_slice_lies(checkpoint, tmp_path):
    hu = np.full((8, SIZE, SIZE), -1000, np.int16)
    hu[2:, 4:12, 4:12] = 40
    write_nifti(Volume.regular(hu, SPACING), tmp_path / "v.nii.gz")
    settings = replace(SETTINGS, seed_volume=tmp_path / "v.nii.gz")
    denoiser = load_denoiser(checkpoint)
    assert load_seed(replace(settings, seed_slice=5), denoiser).position_mm == 15.0  # three slices below the vertex
    assert load_seed(settings, denoiser).index == 4, "-1 is the middle"
    for bad in (8, -2):
        with pytest.raises(UserError, match="slices 0 to 7"):
            load_seed(replace(settings, seed_slice=bad), denoiser)


@pytest.mark.parametrize("size, spacing", [(SIZE, (2.5, 12.0, 12.0)), (24, (5.0, 8.0, 8.0))])
def test_a_seed_volume_on_another_grid_is_refused_or_resampled(size, spacing, checkpoint, tmp_path):
    source = _real(tmp_path / "real.nii.gz", size, spacing, 18)
    settings = replace(SETTINGS, count=1, seed_volume=source, seed_slice=3)
    with pytest.raises(UserError, match="resample_seed=True") as caught:
        generate(checkpoint, tmp_path / "out", settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    generate(checkpoint, tmp_path / "out", replace(settings, resample_seed=True))
    made = read_volume(tmp_path / "out" / "dicom" / "volume-0000").volume
    assert made.hu.shape == (3, SIZE, SIZE)
    assert np.allclose(made.spacing, SPACING)


def test_an_oblique_or_oblong_seed_volume_is_refused(checkpoint, tmp_path):
    hu = np.full((4, SIZE, SIZE), -1000, np.int16)
    hu[:, 4:12, 4:12] = 40
    regular = Volume.regular(hu, SPACING)
    c, s = np.cos(0.3), np.sin(0.3)
    turned = replace(regular, row_axis=np.array([c, s, 0.0]), column_axis=np.array([-s, c, 0.0]))
    write_nifti(turned, tmp_path / "turned.nii.gz")
    write_nifti(Volume.regular(np.concatenate([hu, hu], axis=2), SPACING), tmp_path / "oblong.nii.gz")
    for name, what in (("turned", "oblique"), ("oblong", "16 x 32")):
        with pytest.raises(UserError, match=what):
            load_seed(replace(SETTINGS, seed_volume=tmp_path / f"{name}.nii.gz"), load_denoiser(checkpoint))


def test_memory_does_not_grow_with_the_count(checkpoint, tmp_path):
    """Peak of what NumPy and Python hold, one batch against four."""
    peaks = []
    settings = replace(SETTINGS, batch=1, nifti=False, chain=replace(SETTINGS.chain, steps=2, slices=2))
    generate(checkpoint, tmp_path / "warm", replace(settings, count=1))
    for count in (1, 4):
        tracemalloc.start()
        generate(checkpoint, tmp_path / f"n{count}", replace(settings, count=count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 50_000


def test_processes_share_the_volumes_and_more_processes_than_volumes_do_no_harm(checkpoint, tmp_path):
    """torchrun with four processes for three volumes: the last has nothing to do; every volume is what one makes."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command += ["-m", "slicewise", "generate", "--checkpoint", str(checkpoint), "--out", str(out), "--count", "3"]
    command += ["--seed", "5", "--batch", "1", "--calibrate", "off", "--core", "float32", "--device", "cpu"]
    command += ["--chain.steps", "3", "--chain.slices", "3", "--no-report"]
    one = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert one.returncode == 0, one.stderr[-3000:]
    alone = tmp_path / "alone"
    generate(checkpoint, alone, replace(SETTINGS, batch=1))
    pairs = zip(results(alone, 3), results(out, 3), strict=True)
    assert all(np.array_equal(a[2].hu, b[2].hu) for a, b in pairs)
