"""Anomalies: what is drawn depends on what it should, scores have the statistics that they claim, files say research
use and refer to the scan."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch

from conftest import toy_head
from slicewise.anomaly import run
from slicewise.anomaly.baselines import from_frame, in_frame, mirrored
from slicewise.anomaly.draws import _span, judged_slices, pseudo_normal
from slicewise.anomaly.files import on_scans_grid
from slicewise.anomaly.reference import Judged, NormalReference, measure_normal
from slicewise.anomaly.score import (
    LEAST_SPREAD_HU,
    TISSUES,
    empirical_p,
    find_regions,
    slice_scores,
    smoothed,
    studentised,
    tissue_map,
    volume_score,
)
from slicewise.anomaly.settings import AnomalySettings
from slicewise.ascii import noised_and_back
from slicewise.cli import main
from slicewise.diffusion.denoiser import Recipe
from slicewise.errors import UserError
from slicewise.hu import HUScale
from slicewise.io.archive import read_volume
from slicewise.io.dicom_write import write_series
from slicewise.pyramid import Pyramid, load_pyramid
from slicewise.sampling import ChainSettings
from slicewise.volume import Volume
from test_pyramid import levels, store, whole  # noqa: F401 (fixtures)

SPACING = (5.0, 6.0, 6.0)
NOISING = AnomalySettings(draws=2, noise=0.3, plan_noise=0.3)
NEIGHBOURS = AnomalySettings(method="neighbours", draws=1, steps=3, gap=1)


@pytest.fixture(scope="module")
def pyramid(whole: Path) -> Pyramid:  # noqa: F811
    return load_pyramid(whole)


@pytest.fixture
def head() -> Volume:
    return Volume.regular(toy_head(9, slices=9, size=32), SPACING)


def _changed(volume: Volume, z: int) -> Volume:
    hu = volume.hu.copy()
    hu[z, 12:20, 12:20] += 300
    return volume.with_hu(hu)


# Drawing


@dataclass
class Beside:
    """A denoiser that takes a slice for the mean of those beside it, and remembers what it was given."""

    recipe: Recipe = field(
        default_factory=lambda: Recipe(3, False, 16, (5.0, 6.0, 6.0), HUScale(), 0.5, 1e-4, 80.0, True, 4, 12)
    )
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        self.seen.append((x.clone(), sigma.clone(), position.clone()))
        out = x.clone()
        out[:, 1] = (x[:, 0] + x[:, 2]) / 2
        return out


def test_a_noised_slice_is_denoised_given_its_true_neighbours():
    hu, stub = np.random.default_rng(0).integers(-900, 900, (5, 16, 16)).astype(np.int16), Beside()
    chain = ChainSettings(sigma_max=0.2, sigma_min=0.05, steps=2, known_sigma=0.0)
    made = noised_and_back(stub, chain, 0, hu, [0, 2, 3], 10.0)  # type: ignore[arg-type]
    above = np.concatenate([np.full((1, 16, 16), -1024), hu])
    for got, z in zip(made, (0, 2, 3)):
        np.testing.assert_allclose(got, (above[z] + above[z + 2]) / 2, atol=2.0)
    x, sigma, position = stub.seen[0]
    assert sigma[:, 1].tolist() == pytest.approx([0.2] * 3)
    assert float(sigma[:, [0, 2]].max()) < 0.001
    assert position.tolist() == [15.0, 25.0, 30.0], "of the window's last slice, below the vertex"
    noise = x[:, 1] - torch.from_numpy(HUScale().encode(hu[[0, 2, 3]]))
    assert float(noise.std()) == pytest.approx(0.2, rel=0.1)
    assert abs(float(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1])) < 0.2, "each slice has noise of its own"


def test_draws_are_those_of_their_number_in_any_batch(pyramid, head):
    one = pseudo_normal(pyramid, head, NOISING)
    judged = judged_slices(pyramid, head, NOISING)
    assert judged == range(2, 8), "between the vertex, which is slice 1, and the last slice"
    np.testing.assert_array_equal(one[[0, 1, 8]], head.hu[[0, 1, 8]])
    assert all((one[z] != head.hu[z]).any() for z in judged)
    small = pseudo_normal(pyramid, head, replace(NOISING, batch=2))
    assert np.abs(one.astype(int) - small).max() <= 1
    assert not np.array_equal(one, pseudo_normal(pyramid, head, NOISING, 1))
    assert not np.array_equal(one, pseudo_normal(pyramid, head, replace(NOISING, seed=1)))


def test_more_noise_hides_more_of_the_scan(pyramid, head):
    off = [
        np.abs(pseudo_normal(pyramid, head, replace(NOISING, noise=n, plan_noise=n)).astype(int) - head.hu).mean()
        for n in (0.05, 1.0)
    ]
    assert off[0] < 0.7 * off[1]


def test_from_neighbours_a_slice_does_not_count_for_itself(pyramid, head):
    one, z = pseudo_normal(pyramid, head, NEIGHBOURS), 4
    other = pseudo_normal(pyramid, _changed(head, z), NEIGHBOURS)
    np.testing.assert_array_equal(one[z], other[z])
    assert (one[z + 1] != other[z + 1]).any(), "but for those beside it"
    noised = [pseudo_normal(pyramid, v, NOISING)[z] for v in (head, _changed(head, z))]
    assert (noised[0] != noised[1]).any()


def test_a_plan_takes_a_head_that_begins_below_the_vertex(pyramid, head):
    part = replace(head, hu=head.hu[2:], positions=head.positions[2:])
    with pytest.raises(UserError, match=r"AnomalySettings\.above_mm"):
        pseudo_normal(pyramid, part, NOISING)
    made = pseudo_normal(pyramid, part, replace(NOISING, above_mm=10.0))
    assert made.shape == part.hu.shape
    assert (made[1] != part.hu[1]).any()


def test_parts_of_a_slice_are_whole_multiples_for_the_network():
    inside = np.zeros(128, bool)
    inside[30:90] = True
    assert _span(inside) == slice(16, 112)
    inside[:] = True
    assert _span(inside) == slice(0, 128)


# Scores


def _flat(shape=(6, 20, 20), kind=1):
    return np.full(shape, kind, np.uint8)


def test_p_is_a_rank_among_normal_scores():
    normal = [1.0, 2.0, 3.0, 4.0]
    assert [empirical_p(s, normal) for s in (0.0, 2.5, 4.0, 9.0)] == [1.0, 3 / 5, 2 / 5, 1 / 5]
    assert np.isnan(empirical_p(float("nan"), normal))
    scores = np.random.default_rng(0).permutation(50) * 1.5  # of exchangeable heads p is uniform
    ps = sorted(empirical_p(s, np.delete(scores, i)) for i, s in enumerate(scores))
    np.testing.assert_allclose(ps, np.arange(1, 51) / 50)


def test_smoothing_stays_within_its_tissue():
    tissue = _flat()
    tissue[:, :, 10:] = 3
    values = np.where(tissue == 3, 500.0, 7.0)
    np.testing.assert_allclose(smoothed(values, tissue, (5.0, 2.0, 2.0), 6.0), values, rtol=1e-5)
    tissue[:, 5] = 0
    assert not smoothed(values, tissue, (5.0, 2.0, 2.0), 6.0)[:, 5].any()


def test_residuals_are_in_units_of_what_draws_differ_in():
    hu, tissue = np.full((6, 20, 20), 40, np.int16), _flat()
    alone = studentised(hu, [hu - 12], tissue, SPACING, 3.0)
    np.testing.assert_allclose(alone, 12 / LEAST_SPREAD_HU, rtol=1e-5)
    two = studentised(hu, [hu - 2, hu - 22], tissue, SPACING, 3.0)  # mean 12, variance 200
    np.testing.assert_allclose(two, 12 / np.sqrt(LEAST_SPREAD_HU**2 + 200), rtol=1e-4)


def test_a_slice_scores_its_cubic_centimetre_that_stands_out_most():
    z, tissue, spacing = np.zeros((3, 20, 20), np.float32), _flat((3, 20, 20)), (5.0, 2.0, 2.0)  # 50 voxels are 1 cm3
    z[1, 0, :20], z[1, 1, :5] = -6.0, 6.0
    tissue[2, 1:] = 0
    scores = slice_scores(z, tissue, spacing)
    assert scores[:2] == pytest.approx([0.0, 3.0])
    assert np.isnan(scores[2])
    assert volume_score(scores) == pytest.approx(3.0)


def test_regions_are_told_apart_by_sign_and_size():
    z = np.zeros((6, 20, 20), np.float32)
    z[1:3, 4:8, 4:8], z[3, 14:18, 14:18], z[5, 0, 0] = 5.0, -7.0, 9.0
    z[2, 5, 5] = 8.0
    marked, regions = find_regions(z, z * 3, (5.0, 2.0, 2.0), 4.0, 0.3)
    assert [(r.number, r.denser, r.slices) for r in regions] == [(1, True, (1, 2)), (2, False, (3, 3))]
    assert regions[0].cm3 == pytest.approx(32 * 0.02)
    assert regions[0].centre == (1.5, 5.5, 5.5)
    assert regions[0].peak_z == 8.0
    assert regions[1].peak_z == -7.0
    assert regions[1].residual_hu == pytest.approx(-21.0)
    assert (marked == 1).sum() == 32
    assert (marked == 2).sum() == 16
    assert marked[5, 0, 0] == 0


def test_brain_its_border_and_the_skull_are_judged_apart(head):
    fine = Volume.regular(toy_head(3, slices=12, size=64), (10.0, 3.0, 3.0))
    tissue = tissue_map(fine.hu, fine.spacing, range(1, 11))
    assert not tissue[[0, 11]].any()
    middle = tissue[6]
    assert middle[32, 32] == 1
    assert set(np.unique(middle)) == {0, 1, 2, 3}
    assert (fine.hu[6][middle == 3] > 500).mean() > 0.9
    assert (fine.hu[6][middle == 1] < 100).all()
    spoilt = fine.hu.copy()
    spoilt[6, 30:34, 30:34] = 400  # what is as dense as bone within the brain is judged with it
    assert (tissue_map(spoilt, fine.spacing, range(1, 11))[6, 30:34, 30:34] == 1).all()


# The normal reference


def _normal(count=8, shift=0.0):
    rng = np.random.default_rng(5)
    tissue = _flat((8, 32, 32))
    tissue[:, :8], tissue[:, 8:12] = 3, 2
    scale = np.select([tissue == 3, tissue == 2], [4.0, 2.0], 1.0)
    made = [(rng.normal(1.0, 1.0, tissue.shape) * scale).astype(np.float32) for _ in range(count)]
    made[0] = made[0] + shift
    return [Judged.of(m, tissue, np.arange(8) * 5.0, (5.0, 2.0, 2.0)) for m in made]


def test_z_scores_of_normal_heads_are_standard_in_every_tissue():
    heads = _normal()
    reference = measure_normal(heads, "abc", NOISING, "toys")
    z = np.stack([reference.z(h.studentised, h.cells) for h in heads])
    for kind in range(1, len(TISSUES) + 1):
        inside = np.broadcast_to(heads[0].tissue == kind, z.shape)
        assert abs(z[inside].mean()) < 0.01
        assert z[inside].std() == pytest.approx(1.0, abs=0.01)
    assert reference.heads == 8
    assert len(reference.volumes) == 8
    assert len(reference.slices) == 64


def test_a_normal_head_is_scored_by_the_others_alone():
    calm, odd = (
        measure_normal(_normal(), "abc", NOISING, "toys"),
        measure_normal(_normal(8, 5.0), "abc", NOISING, "toys"),
    )
    heads = _normal(8, 5.0)
    others = np.sum([h.sums for h in heads[1:]], axis=0)
    mean = others[1] / np.maximum(others[0], 1)
    sd = np.sqrt(others[2] / np.maximum(others[0], 1) - mean**2)
    cells = heads[0].cells
    by_hand = (heads[0].studentised - mean[cells]) / sd[cells]
    assert odd.volumes[0] == pytest.approx(
        volume_score(slice_scores(by_hand, heads[0].tissue, heads[0].spacing)), rel=1e-4
    )
    assert odd.volumes[0] > max(calm.volumes) + 1


def test_a_reference_is_read_back_and_refused_elsewhere(tmp_path):
    reference = measure_normal(_normal(), "abc", NOISING, "toys")
    reference.save(tmp_path / "reference.json")
    assert NormalReference.load(tmp_path / "reference.json") == reference
    reference.check("abc", replace(NOISING, seed=7, z=2.0))
    with pytest.raises(UserError, match="another checkpoint"):
        reference.check("abd", NOISING)
    with pytest.raises(UserError, match=r"AnomalySettings\.draws=3: the normal reference was measured with 2"):
        reference.check("abc", replace(NOISING, draws=3))
    (tmp_path / "reference.json").write_text('{"kind": "other"}')
    with pytest.raises(UserError, match="not a normal reference"):
        NormalReference.load(tmp_path / "reference.json")
    with pytest.raises(UserError, match="3 normal heads are too few"):
        measure_normal(_normal(3), "abc", NOISING, "toys")


# What has to be beaten


def _lopsided(shift: float = 0.0) -> np.ndarray:
    """A head with left and right alike, shifted to the right, but for a dense ball on its right."""
    y, x = np.mgrid[:64, :64] - 31.5
    y, x = y[None], x[None] - shift
    radius = np.sqrt((y / 26) ** 2 + (x / 20) ** 2)
    hu = np.select([radius < 0.85, radius < 1.0], [30.0, 900.0], -1000.0)
    hu = np.where(np.hypot(y - 10, np.abs(x) - 6) < 3, 5.0, hu)  # ventricles
    hu = np.where(np.hypot(y + 8, x - 9) < 4, 75.0, hu)
    return np.repeat(hu, 6, axis=0).astype(np.int16)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_left_against_right_finds_what_one_side_has(shift):
    hu = _lopsided(shift)
    residual = hu.astype(int) - mirrored(hu)
    y, x = np.mgrid[:64, :64] - 31.5
    ball, other = np.hypot(y + 8, x - shift - 9) < 3, np.hypot(y + 8, x - shift + 9) < 3
    assert residual[2][ball].mean() == pytest.approx(45, abs=6)
    assert residual[2][other].mean() == pytest.approx(-45, abs=6)
    calm = (np.hypot((y - 2) / 18, (x - shift) / 13) < 1) & (np.hypot(y + 8, np.abs(x - shift) - 9) > 6)
    assert np.abs(residual[2][calm]).mean() < 3


def test_an_atlas_of_one_head_is_that_head():
    hu = _lopsided(2.0)
    mean = in_frame(hu, 10)
    assert (mean[6:] == -1024).all(), "below the heads there is air"
    again = from_frame(mean, hu)
    y, x = np.mgrid[:64, :64] - 31.5
    inside = np.hypot(y / 18, (x - 2) / 13) < 1
    assert np.abs(again[2].astype(int) - hu[2])[inside].mean() < 3
    assert np.abs(in_frame(hu, 10)[2] - in_frame(_lopsided(0.0), 10)[2]).mean() < 12, "wherever it lies"


# A scan from end to end


@pytest.fixture(scope="module")
def normal(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A reference of five toy heads."""
    out = tmp_path_factory.mktemp("anomaly")
    for i in range(5):
        toy = Volume.regular(toy_head(20 + i, slices=9, size=32), SPACING)
        write_series(toy, out / "heads" / f"{i}", synthetic=None, patient_id=f"N{i}")
    main(["anomaly-reference", str(out / "heads"), "--out", str(out / "reference"), *_flags(whole)])
    return out / "reference"


def _flags(checkpoint: Path, **more: object) -> list[str]:
    values = {"draws": 2, "noise": 0.3, "plan-noise": 0.3, "device": "cpu", "checkpoint": checkpoint, **more}
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def _anomaly(scan: Path, out: Path, reference: Path, *more: str) -> None:
    main(["anomaly", str(scan), "--out", str(out), "--reference", str(reference), *more])


def test_a_series_gives_series_maps_regions_and_a_page_that_refer_to_it(whole, normal, head, tmp_path, capsys):  # noqa: F811
    scan = write_series(_changed(head, 4), tmp_path / "scan", synthetic=None, patient_id="P1")
    out = tmp_path / "out"
    _anomaly(tmp_path / "scan", out, normal, *_flags(whole, z=0.5))
    said = capsys.readouterr().out
    assert "score" in said
    assert "of 5 normal heads" in said
    assert "research use only" in said
    told = json.loads((out / "anomaly.json").read_text())
    assert "not a diagnosis" in told["use"] or "nothing here is a diagnosis" in told["use"]
    assert told["regions"]
    assert 0 < told["p"] <= 1
    assert len(told["slices"]) == 9
    page = (out / "report.html").read_text()
    assert "research use" in page
    assert "data:image/png" in page
    pseudo, residual = (read_volume(out / "nifti" / f"{n}.nii.gz").volume for n in ("pseudo-normal", "residual"))
    expected = np.clip(_changed(head, 4).hu.astype(int) - pseudo.hu, -1024, 3071)
    assert np.abs(residual.hu - expected).max() <= 1
    first = pydicom.dcmread(scan[0])
    for name in ("pseudo-normal", "residual"):
        made = [pydicom.dcmread(f) for f in sorted((out / "dicom" / name).iterdir())]
        assert len(made) == 9
        for ds, source in zip(made, scan):
            assert ds.StudyInstanceUID == first.StudyInstanceUID
            assert ds.PatientID == "P1"
            assert ds.FrameOfReferenceUID == first.FrameOfReferenceUID
            assert ds.SyntheticData == "YES"
            assert "research use" in ds.DerivationDescription
            assert "research use" in ds.SeriesDescription
            (referred,) = ds.SourceImageSequence
            assert referred.ReferencedSOPInstanceUID == pydicom.dcmread(source).SOPInstanceUID
    segments = pydicom.dcmread(out / "dicom" / "regions.dcm")
    assert all("research use" in s.SegmentLabel for s in segments.SegmentSequence)
    categories = {s.SegmentedPropertyCategoryCodeSequence[0].CodeValue for s in segments.SegmentSequence}
    assert categories == {"49755003"}, "morphologically abnormal structure"
    assert segments.FrameOfReferenceUID == first.FrameOfReferenceUID
    uids = {i.ReferencedSOPInstanceUID for s in segments.ReferencedSeriesSequence for i in s.ReferencedInstanceSequence}
    assert uids <= {pydicom.dcmread(f).SOPInstanceUID for f in scan}
    assert uids
    z = nibabel.load(out / "nifti" / "z.nii.gz")
    np.testing.assert_allclose(z.affine, nibabel.load(out / "nifti" / "residual.nii.gz").affine, atol=1e-4)
    # Again, with another threshold: nothing is redrawn, and what was written is replaced.
    before = {f.name: f.stat().st_mtime_ns for f in (out / "draws").iterdir()}
    _anomaly(tmp_path / "scan", out, normal, *_flags(whole, z=1e6))
    assert {f.name: f.stat().st_mtime_ns for f in (out / "draws").iterdir()} == before
    assert json.loads((out / "anomaly.json").read_text())["regions"] == []
    assert not (out / "dicom" / "regions.dcm").exists()


def test_a_run_goes_on_from_the_draws_that_are_there(pyramid, head, tmp_path, monkeypatch):
    made = []

    def counted(model, volume, settings, number, device, progress):
        made.append(number)
        return pseudo_normal(model, volume, settings, number, device, progress)

    monkeypatch.setattr(run, "pseudo_normal", counted)
    told: list[tuple[int, int]] = []
    (first,) = run.drawn(pyramid, "abc", head, replace(NOISING, draws=1), tmp_path)
    three = run.drawn(pyramid, "abc", head, replace(NOISING, draws=3), tmp_path, progress=lambda *at: told.append(at))
    assert made == [0, 1, 2]
    assert told[-1] == (18, 18)
    assert told == sorted(told)
    np.testing.assert_array_equal(three[0], first)
    (tmp_path / "001.npy").write_bytes((tmp_path / "001.npy").read_bytes()[:500])  # cut off
    again = run.drawn(pyramid, "abc", head, replace(NOISING, draws=3), tmp_path)
    assert made == [0, 1, 2, 1]
    np.testing.assert_array_equal(again, three)
    for other in ((pyramid, "abd", head, NOISING), (pyramid, "abc", _changed(head, 3), NOISING)):
        with pytest.raises(UserError, match="draws of another scan or checkpoint"):
            run.drawn(*other, tmp_path)


def test_regions_go_back_to_a_tilted_scan_of_another_spacing(head):
    tilt = np.deg2rad(10)
    scan = Volume(
        np.zeros((20, 48, 40), np.int16),
        np.array([-100.0, -110.0, 45.0]) + np.arange(20)[:, None] * [0.0, 0.0, -2.5],
        np.array([1.0, 0.0, 0.0]),
        np.array([0.0, np.cos(tilt), np.sin(tilt)]),
        (4.5, 5.0),
    )
    marked = np.zeros(head.hu.shape, np.uint8)
    marked[3:6, 10:16, 18:25] = 2
    there = on_scans_grid(marked, head, scan)
    low, high = (head.affine @ [*corner, 1.0] for corner in ((17.5, 9.5, 2.5), (24.5, 15.5, 5.5)))
    z, y, x = np.indices(scan.hu.shape)
    place = scan.positions[z] + (y * 4.5)[..., None] * scan.column_axis + (x * 5.0)[..., None] * scan.row_axis
    inside = ((place > np.minimum(low, high)[:3]) & (place < np.maximum(low, high)[:3])).all(axis=-1)
    assert inside.sum() > 50
    np.testing.assert_array_equal(there == 2, inside)


def test_what_cannot_be_judged_is_one_line(whole, levels, normal, head, tmp_path, capsys):  # noqa: F811
    def line(scan: Volume, *more: str, reference: Path = normal) -> str:
        folder = tmp_path / f"scan{len(list(tmp_path.iterdir()))}"
        write_series(scan, folder, synthetic=None, patient_id="P1")
        with pytest.raises(SystemExit):
            _anomaly(folder, tmp_path / "none", reference, *more)
        said = capsys.readouterr().err.strip().splitlines()
        return [text for text in said if text.startswith("slicewise anomaly")][-1]

    other = Volume.regular(np.kron(head.hu, np.ones((1, 2, 2), np.int16)), (5.0, 3.0, 3.0))
    cut = replace(head, hu=head.hu[3:], positions=head.positions[3:])
    flags = _flags(whole)
    assert "--resample brings it there" in line(other, *flags)
    assert "give --above-mm, the height of the missing part" in line(cut, *flags)
    assert "--draws 3: the normal reference was measured with 2" in line(head, *_flags(whole, draws=3))
    assert "measured with another checkpoint" in line(head, *_flags(levels[1]))
    assert "make one with slicewise anomaly-reference" in line(head, *flags, reference=tmp_path / "nowhere")
    assert "--gap 0: must be 1 or more" in line(head, *_flags(whole, gap=0))
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").rglob("*.dcm"))
