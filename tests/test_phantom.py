"""The head phantom: the same for a seed, different between seeds, and what a head CT is in HU, noise and geometry."""

import itertools
import os
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from slicewise.data.phantom import LABELS, Phantom, PhantomSettings, make_phantom, scanner, write_each, write_phantoms
from slicewise.errors import UserError

SMALL = PhantomSettings(size=128, pathology=0.0)
QUIET = PhantomSettings(size=128, pathology=0.0, noise_hu=0.0)
# The eight structures of the paper's Table 2, as labels.
TABLE_2 = (
    ("skull", "diploe"),
    ("skull base", "mastoid"),
    ("facial bone",),
    ("ventricles",),
    ("sulci", "cisterns"),
    ("basilar artery",),
    ("venous sinuses",),
    ("internal capsule",),
)


@lru_cache(maxsize=8)
def head(seed: int, settings: PhantomSettings = SMALL) -> Phantom:
    return make_phantom(seed, settings)


def core(phantom: Phantom, *names: str, erode: int = 1) -> np.ndarray:
    """Voxels of a tissue away from its borders in plane, where no other tissue shares the voxel."""
    mask = np.isin(phantom.labels, [LABELS[name] for name in names])
    return ndimage.binary_erosion(mask, np.ones((1, 3, 3)), iterations=erode) if erode else mask


def test_same_seed_same_head_and_other_seed_another() -> None:
    again = make_phantom(3, SMALL)
    assert np.array_equal(again.volume.hu, head(3).volume.hu)
    assert np.array_equal(again.labels, head(3).labels)
    assert again.description == head(3).description
    other = head(4)
    n = min(len(other.labels), len(again.labels))
    brain = [LABELS[k] for k in ("white matter", "grey matter")]
    a, b = (np.isin(p.labels[:n], brain) for p in (again, other))
    assert 0.5 < 2 * (a & b).sum() / (a.sum() + b.sum()) < 0.97  # both are heads, but not the same one
    assert abs(a.sum() - b.sum()) > 0


def test_grid_and_orientation() -> None:
    phantom = head(3)
    volume, labels = phantom.volume, phantom.labels
    assert volume.hu.dtype == np.int16
    assert labels.dtype == np.uint8
    assert labels.shape == volume.hu.shape
    assert volume.hu.shape[1:] == (128, 128)
    assert 28 <= volume.hu.shape[0] <= 36
    assert volume.spacing == pytest.approx((5.0, 1.875, 1.875))
    assert np.all(np.diff(volume.positions[:, 2]) < 0)  # superior first
    z, y, x = {}, {}, {}
    for name in ("eye", "cerebellum", "skull", "mastoid", "facial bone"):
        z[name], y[name], x[name] = (v.mean() for v in np.nonzero(labels == LABELS[name]))
    assert y["eye"] < y["skull"] < y["cerebellum"]  # nose at the top of the image
    assert z["skull"] < z["eye"] < z["facial bone"]  # and the vertex in the first slices
    # The head begins within the first two slices and continues to the last one.
    area = (labels > 0).sum((1, 2)) * 1.875**2 / 100
    assert area[0] < 80
    assert area[2] > 5
    assert area[-1] > 100
    for side in (labels[:, :, :64], labels[:, :, 64:]):
        assert (side == LABELS["eye"]).any()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("white matter", 23, 31),
        ("ventricles", 2, 17),
        ("deep nuclei", 29, 39),
        ("internal capsule", 21, 30),
        ("cerebellum", 26, 37),
        ("brain stem", 25, 36),
        ("eye", 4, 20),
        ("muscle", 35, 75),
        ("diploe", 300, 950),
        ("air cavities", -1010, -800),
    ],
)
def test_tissue_hu(name: str, low: float, high: float) -> None:
    """Without beam hardening, which brightens what lies beside bone."""
    for seed in (3, 4):
        phantom = head(seed, replace(SMALL, hardening=0.0))
        values = phantom.volume.hu[core(phantom, name)]
        assert values.size > 10
        assert low < np.median(values) < high


def test_every_slice_has_an_offset_of_its_own_where_asked_for() -> None:
    with_offsets, without = (make_phantom(3, replace(QUIET, offset_hu=hu)) for hu in (2.0, 0.0))
    change = with_offsets.volume.hu.astype(int) - without.volume.hu
    brain = without.labels == LABELS["white matter"]
    offsets = []
    for slices, inside in zip(change, brain):
        if inside.sum() > 50:
            assert np.ptp(slices[inside]) <= 1, "one number for a slice, up to rounding"
            offsets.append(slices[inside].mean())
    assert 0.7 < np.std(offsets) < 4.0
    assert abs(np.corrcoef(offsets[1:], offsets[:-1])[0, 1]) < 0.6
    assert np.abs(change[without.volume.hu < -990]).max() <= 1, "air is air"


def test_grey_is_brighter_than_white_and_both_than_fluid() -> None:
    phantom = head(3, QUIET)
    grey, white = (np.median(phantom.volume.hu[phantom.labels == LABELS[k]]) for k in ("grey matter", "white matter"))
    fluid = np.median(phantom.volume.hu[core(phantom, "ventricles")])
    assert 3 < grey - white < 11  # 8 to 10.5 HU before the 5 mm slice and 1.9 mm pixel mix them
    assert fluid < white - 10
    described = phantom.description
    assert 8 <= described["grey"] - described["white"] <= 10.5
    assert 4 <= described["csf"] <= 9


def test_bone_and_air_reach_their_range() -> None:
    hu = head(3).volume.hu
    assert np.percentile(hu[hu > 300], 99) > 1100
    assert hu.max() < 2600
    # Beside the head: nose and occiput may come within a centimetre of the front and back borders.
    border = np.concatenate([hu[:, :, :6].ravel(), hu[:, :, -6:].ravel()])
    assert abs(np.median(border) + 1000) < 3
    assert border.std() < 4
    assert hu.min() >= -1024


def test_all_structures_of_table_2() -> None:
    for seed in (3, 4):
        for names in TABLE_2:
            assert core(head(seed), *names, erode=0).sum() >= 15, names


def test_noise_has_the_stated_level_and_is_not_white() -> None:
    noisy, clean = head(3), head(3, QUIET)
    assert np.array_equal(noisy.labels, clean.labels)  # the noise alone differs
    noise = (noisy.volume.hu - clean.volume.hu).astype(float)
    brain = core(noisy, "white matter", "grey matter", erode=0)
    level = noise[brain].std()
    assert level == pytest.approx(noisy.description["noise_hu"], rel=0.25)
    assert abs(noise[brain].mean()) < 0.2
    assert noise[noisy.labels == LABELS["air"]].std() < 0.8 * level
    # Power near zero frequency is far below the middle of the band, as after a ramp filter.
    patch = noise[8:20, 48:80, 48:80]
    power = (np.abs(np.fft.fft2(patch)) ** 2).mean(0)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32)))
    assert power[(f > 0) & (f < 0.05)].mean() < 0.5 * power[(f > 0.2) & (f < 0.4)].mean()


def test_noise_filter_keeps_unit_variance() -> None:
    rng = np.random.default_rng(0)
    for size, pixel in ((64, 1.9), (96, 0.9)):
        shaped = np.fft.irfft2(
            np.fft.rfft2(rng.standard_normal((40, size, size))) * scanner.noise_filter(size, pixel, 0.4)
        )
        assert shaped.std() == pytest.approx(1.0, rel=0.03)


def test_slice_profile_averages() -> None:
    weights = scanner.slice_weights(5 / 3, 5.0)
    assert weights.sum() == pytest.approx(1)
    assert np.allclose(weights, weights[::-1])
    ramp = np.arange(21, dtype=np.float32)
    assert np.allclose(scanner.slice_matrix(np.array([7, 10]), 21, 5 / 3, 5.0) @ ramp, [7, 10], atol=1e-4)


def test_slices_go_on_into_each_other() -> None:
    phantom = head(3)
    brain = core(phantom, "white matter", "grey matter", "sulci", "ventricles", "deep nuclei", erode=0)
    means, overlaps = [], []
    for a, b in itertools.pairwise(brain[7:20]):
        overlaps.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    for hu, mask in zip(phantom.volume.hu[7:20], brain[7:20]):
        means.append(np.median(hu[mask]))
    assert min(overlaps) > 0.8
    assert np.abs(np.diff(means)).max() < 4


def test_asymmetric_but_level() -> None:
    labels = head(3).labels
    brain = np.isin(labels, [LABELS[k] for k in ("white matter", "grey matter")])
    mirrored = brain[:, :, ::-1]
    dice = 2 * (brain & mirrored).sum() / (2 * brain.sum())
    assert 0.6 < dice < 0.98


@pytest.mark.parametrize(
    "wrong",
    [{"size": 100}, {"fov_mm": 20.0}, {"slice_mm": 0.0}, {"pathology": 1.5}, {"table": -0.1}, {"noise_hu": -1.0}],
)
def test_bad_settings_end_in_one_line(wrong: dict) -> None:
    with pytest.raises(UserError) as caught:
        make_phantom(0, PhantomSettings(**wrong))
    assert "\n" not in str(caught.value)
    assert f"PhantomSettings.{next(iter(wrong))}=" in str(caught.value)


def test_written_series_holds_the_same_head_and_resumes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import nibabel
    import pydicom

    folders = write_phantoms(tmp_path, 1, 3, SMALL)
    files = sorted(folders[0].glob("*.dcm"), key=lambda f: -pydicom.dcmread(f).ImagePositionPatient[2])
    slices = [pydicom.dcmread(f) for f in files]
    stored = np.stack([s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices])
    assert np.array_equal(stored, head(3).volume.hu)
    assert {s.PatientID for s in slices} == {"PHANTOM-00000003"}
    assert slices[0].SyntheticData == "YES"
    assert np.allclose([s.ImagePositionPatient for s in slices], head(3).volume.positions)
    labels = nibabel.load(tmp_path / "labels" / "PHANTOM-00000003.nii.gz")
    assert np.array_equal(np.asarray(labels.dataobj).transpose(2, 1, 0), head(3).labels)
    ras = labels.affine @ [10, 20, 5, 1]  # NIfTI is RAS where DICOM is LPS
    assert np.allclose(ras[:3] * [-1, -1, 1], head(3).volume.affine[:3] @ [10, 20, 5, 1], atol=1e-3)
    stamp = files[0].stat().st_mtime_ns
    assert write_phantoms(tmp_path, 1, 3, SMALL) == folders
    assert files[0].stat().st_mtime_ns == stamp
    assert not list(tmp_path.rglob("*.partial*"))
    with pytest.raises(UserError, match="other settings"):
        write_phantoms(tmp_path, 1, 3, QUIET)
    with pytest.raises(UserError, match="count="):
        write_phantoms(tmp_path, 0, 3, SMALL)


def _note_threads(folder: Path, seed: int) -> None:
    (folder / str(seed)).write_text(os.environ.get("OPENBLAS_NUM_THREADS", "") + os.environ.get("OMP_NUM_THREADS", ""))


def test_workers_make_every_seed_in_one_thread_each(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # what the user asks for stays
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    write_each(partial(_note_threads, tmp_path), [4, 5, 9], 2, total=6)
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"4": "13", "5": "13", "9": "13"}
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "3"
