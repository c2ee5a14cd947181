"""`slicewise evaluate` from two sets to its tables and page; floors, audit, cache, and every bad input in one line."""

import csv
import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from browser import accessible, browser, chromium
from conftest import toy_head
from slicewise import cli
from slicewise.data.store import put_volume
from slicewise.errors import UserError
from slicewise.evaluation.audit import sentence
from slicewise.evaluation.collect import Frame, _similarities
from slicewise.evaluation.evaluate import evaluate, write_evaluation
from slicewise.evaluation.settings import EvaluateSettings
from slicewise.evaluation.tables import interval, number, plus_minus
from slicewise.hu import BRAIN, WHOLE, to_unit
from slicewise.io.dicom_write import write_series
from slicewise.io.nifti import write_nifti
from slicewise.metrics import extractors
from slicewise.metrics.compare import check_features, feature_distances, measurement
from slicewise.metrics.features import PLANES, Extractor
from slicewise.metrics.frechet import frechet_distance, frechet_of_features, slices_estimate
from slicewise.metrics.kernel import batch_mmd2
from slicewise.metrics.memorisation import MEASURES
from slicewise.volume import Volume

SPACING = (5.0, 4.5, 4.5)
SHAPE = (14, 48)
QUICK = EvaluateSettings(rounds=20)


def brainy_head(seed: int) -> np.ndarray:
    """int16 HU (14, 48, 48): a skull with grey and white brain and ventricles, of a shape of its own."""
    rng = np.random.default_rng(seed)
    hu = toy_head(seed, *SHAPE).astype(np.float64)
    brain = (hu > -50) & (hu < 150)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in hu.shape), indexing="ij")
    folds = sum(rng.normal() * np.sin(rng.uniform(2, 7) * x + rng.uniform(2, 7) * y + 2 * z) for _ in range(5))
    inner = np.where(folds > 0, 36.0, 28.0)
    inner = np.where(x**2 + (1.5 * y) ** 2 < rng.uniform(0.02, 0.05), 8.0, inner) + rng.normal(0, 3, hu.shape)
    return np.clip(np.rint(np.where(brain, inner, hu)), -1024, 3071).astype(np.int16)


def store(path: Path, heads: list[np.ndarray], prefix: str = "p") -> Path:
    for i, hu in enumerate(heads):
        volume = Volume.regular(hu, SPACING)
        put_volume(path, volume, id=f"{prefix}{i:03d}", patient=f"{prefix}{i:03d}", split="train", vertex_slice=0)
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Held-out, honest, training and copied heads; and DICOM and NIfTI of the honest ones."""
    path = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    train = [brainy_head(100 + i) for i in range(10)]
    honest = [brainy_head(200 + i) for i in range(6)]
    copies = [np.clip(train[i] + rng.normal(0, 6, train[i].shape), -1024, 3071).astype(np.int16) for i in range(6)]
    made = {
        "real": store(path / "real", [brainy_head(i) for i in range(8)]),
        "honest": store(path / "honest", honest, "h"),
        "train": store(path / "train", train, "t"),
        "copies": store(path / "copies", copies, "c"),
        "dicom": path / "dicom",
        "nifti": path / "nifti",
    }
    for i, hu in enumerate(honest[:3]):
        volume = Volume.regular(hu, SPACING)
        write_series(volume, made["dicom"] / f"s{i}", synthetic=None, patient_id=f"D{i}")
        write_nifti(volume, made["nifti"] / f"{i}.nii.gz")
    return made


@pytest.fixture(autouse=True)
def small_extractor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures shrunk to 6 x 6 pixels stand for features: as informative as a test needs, and quick."""
    import torch

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 6).mean(dim=1).flatten(1)[:, :, None, None]

    small = Extractor("pixels 6 x 6", 48, 36, (0.5,) * 3, (0.5,) * 3, network)
    monkeypatch.setattr(extractors, "make_extractor", lambda *_: small)


def row(found, name: str, window=BRAIN, slices: str = "middle"):
    text = f"[{window.lo:g}, {window.hi:g}] HU" if window else ""
    (one,) = [r for r in found.distances if (r.name, r.window, r.slices) == (name, text, slices)]
    return one.estimate


def quantity(found, name: str):
    (one,) = [r for r in found.measurements if r.name == name]
    return one


def test_every_number_is_there_with_interval_and_floor_and_is_what_its_definition_gives(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    found = evaluate(sets["real"], sets["honest"], QUICK, cache=tmp_path / "cache", progress=False)
    names = [
        f"{n}-{p}" for n in ("FID", "KID", "Precision", "Recall", "Density", "Coverage") for p in ("Ax", "Cor", "Sag")
    ]
    for window in (WHOLE, BRAIN):
        for name in names:
            e = row(found, name, window)
            assert np.isfinite([e.value, e.low, e.high, e.floor, e.floor_sd, e.same_n]).all(), name
            assert e.floor_n == 4
            assert e.low <= e.value <= e.high
        for plane in ("Ax", "Cor", "Sag"):
            e = row(found, f"FID-{plane}", window, "all")
            assert np.isfinite([e.value, e.low, e.high, e.floor, e.same_n]).all()
            assert e.low < e.value < e.high
    real = [brainy_head(i) for i in range(8)]
    honest = [brainy_head(200 + i) for i in range(6)]
    # bMMD² over batches of 4: one batch of synthetic volumes, two of real ones.
    x, y = (np.stack([to_unit(h, BRAIN).ravel() for h in heads[:4]]) for heads in (real, honest))
    biased, unbiased = batch_mmd2(x, y)
    assert row(found, "bMMD² of 4, biased", BRAIN, "").value == pytest.approx(biased)
    assert row(found, "bMMD² of 4, unbiased", BRAIN, "").value == pytest.approx(unbiased)
    floor = batch_mmd2(x, np.stack([to_unit(h, BRAIN).ravel() for h in real[4:]]))
    assert row(found, "bMMD² of 4, biased", BRAIN, "").floor == pytest.approx(floor[0])
    for name in ("Grey matter", "Brain", "Head, air left out"):
        e = row(found, name, None, "")
        assert 0 <= e.value < 60
        assert np.isfinite(e.floor)
    step = quantity(found, "|Δ mean| between slices, brain")
    assert step.n_real == 8
    assert step.n_synth == 6
    assert step.real_mean > 0
    assert step.low < step.difference < step.high
    pairs = quantity(found, "MS-SSIM of pairs, [-10, 70] HU")
    assert pairs.n_real == 4
    assert pairs.n_synth == 3
    assert 0 < pairs.synth_mean < 1
    assert found.audit is None
    assert not found.notices


def test_outputs_say_the_same_and_need_nothing_from_outside(sets: dict[str, Path], tmp_path: Path) -> None:
    found = evaluate(sets["real"], sets["dicom"], QUICK, cache=tmp_path / "cache", progress=False)
    written = write_evaluation(found, tmp_path / "out")
    assert sorted(p.name for p in written) == [
        "distances.csv", "evaluation.html", "measurements.csv", "metrics.json", "tables.md",
    ]  # fmt: skip
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert values["extractor"] == "pixels 6 x 6"
    assert values["synth"]["count"] == 3
    assert values["real"]["count"] == 8
    lines = list(csv.DictReader((tmp_path / "out" / "distances.csv").open()))
    assert len(lines) == len(values["distances"]) == len(found.distances)
    for line, value in zip(lines, values["distances"]):
        assert line["name"] == value["name"]
        assert float(line["value"]) == pytest.approx(value["value"], rel=1e-4)
    page, table = (tmp_path / "out" / "evaluation.html").read_text(), (tmp_path / "out" / "tables.md").read_text()
    fid = number(row(found, "FID-Ax").value)
    assert fid in page
    assert fid in table
    assert "pixels 6 x 6" in page
    assert "pixels 6 x 6" in table
    assert not re.search(r'(src|href)="(?!data:|#)', page), "one file, nothing from outside"
    assert "<script" not in page, "one file, nothing from outside"
    assert page.count("<svg") >= 5
    assert "too few for a floor" in page
    if chromium() is not None:
        with browser() as opened:
            tab = opened.new_page()
            tab.goto((tmp_path / "out" / "evaluation.html").as_uri())
            accessible(tab)
    assert [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")] == []


def test_a_worse_set_is_told_from_an_honest_one(sets: dict[str, Path], tmp_path: Path) -> None:
    """Every second slice 8 HU brighter and 12 HU of noise: continuity, HU, noise and features all see it."""
    rng = np.random.default_rng(1)
    worse = []
    for i in range(6):
        hu = brainy_head(200 + i)
        shift = np.where(np.arange(len(hu)) % 2, 8, 0)[:, None, None] + rng.normal(0, 8, hu.shape)
        worse.append(np.where(hu > -300, np.clip(hu + shift, -1024, 3071), hu).astype(np.int16))
    cache = tmp_path / "cache"
    good = evaluate(sets["real"], sets["honest"], QUICK, cache=cache, progress=False)
    bad = evaluate(sets["real"], store(tmp_path / "worse", worse, "w"), QUICK, cache=cache, progress=False)
    name = "|Δ mean| between slices, brain"
    assert quantity(good, name).low < 0.5 < 5 < quantity(bad, name).low
    assert quantity(bad, "|Δ median| between slices, brain").difference > 5
    assert quantity(bad, "Noise").difference > 4 > 1 > abs(quantity(good, "Noise").difference)
    assert quantity(bad, "NCC of neighbours, brain window").high < 0
    e = row(bad, "Brain", None, "")
    assert e.value > 2
    assert e.same_n > e.floor + 3 * e.floor_sd
    assert row(bad, "FID-Ax").value > 1.5 * row(good, "FID-Ax").value


def test_audit_fails_a_generator_that_copies_and_passes_an_honest_one(sets: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    options = {"train": sets["train"], "cache": cache, "progress": False}
    copied = evaluate(sets["real"], sets["copies"], QUICK, **options)
    assert copied.audit is not None
    assert not copied.audit.passed
    assert {v.name for v in copied.audit.verdicts} == set(MEASURES)
    by_name = {v.name: v for v in copied.audit.verdicts}
    for name in ("slices, correlation", "volumes, correlation"):
        assert not by_name[name].passed
        assert by_name[name].below == 6
    assert "FAILED" in sentence(copied.audit)
    assert len(copied.audit.pairs) == 4
    for pair in copied.audit.pairs:
        assert pair.synth[1:] == pair.train[1:], "every copy is traced to its original"
        assert pair.synth_slice == pair.train_slice
        assert pair.correlation > 0.95
    write_evaluation(copied, tmp_path / "out")
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "FAILED" in page
    assert copied.audit.pairs[0].train in page
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["audit"]["passed"] is False
    honest = evaluate(sets["real"], sets["honest"], QUICK, **options)
    assert honest.audit is not None
    assert honest.audit.passed
    assert sentence(honest.audit).startswith("passed")
    exact = evaluate(sets["real"], sets["train"], QUICK, **options)
    assert exact.audit is not None
    assert len(exact.audit.exact) == 10
    assert "voxel for voxel" in sentence(exact.audit)
    with pytest.raises(UserError, match=r"8 of its volumes .* are in the training set"):
        evaluate(sets["real"], sets["honest"], QUICK, train=sets["real"], cache=cache, progress=False)


def test_what_was_computed_is_not_computed_again(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(sets["real"], sets["honest"], QUICK, cache=tmp_path / "cache", progress=False)

    def never(*_: object) -> None:
        raise AssertionError("computed although it was kept")

    monkeypatch.setattr(Extractor, "__call__", never)
    monkeypatch.setattr("slicewise.evaluation.collect.anatomy", never)
    monkeypatch.setattr("slicewise.evaluation.collect.ms_ssim_legacy", never)
    again = evaluate(sets["real"], sets["honest"], QUICK, cache=tmp_path / "cache", progress=False)
    assert again.distances == first.distances
    assert repr(again.measurements) == repr(first.measurements)


def test_features_of_another_extractor_are_refused(sets: dict[str, Path], tmp_path: Path) -> None:
    evaluate(sets["real"], sets["honest"], QUICK, cache=tmp_path / "cache", progress=False)
    other = Extractor("pixels 6 x 6", 48, 35, (0.5,) * 3, (0.5,) * 3, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractors, "make_extractor", lambda *_: other)
        with pytest.raises(UserError, match="features of another extractor"):
            evaluate(sets["real"], sets["honest"], QUICK, cache=tmp_path / "cache", progress=False)
    rng = np.random.default_rng(0)
    real, synth = ({(p, BRAIN): rng.standard_normal((5, d)) for p in PLANES} for d in (8, 9))
    with pytest.raises(UserError, match="different extractors"):
        feature_distances(real, synth, [BRAIN])
    with pytest.raises(UserError, match="1 of 5 feature vectors hold NaN"):
        check_features(np.where(np.arange(5)[:, None] == 2, np.nan, np.ones((5, 3))))


@pytest.mark.parametrize(("sizes", "d", "rows"), [((8, 6), 5, 6), ((3, 2), 4, 6), ((8, 6), 3, 400)])
def test_frechet_distance_of_streamed_slices_is_that_of_all_of_them(sizes: tuple[int, int], d: int, rows: int) -> None:
    rng = np.random.default_rng(2)
    sides = [
        [rng.standard_normal((rng.integers(rows - 2, rows + 3), d)) + 0.4 * k for _ in range(n)]
        for k, n in enumerate(sizes)
    ]
    found = slices_estimate(lambda: iter(sides[0]), lambda: iter(sides[1]), sizes, d, rounds=200)
    e = found.estimate
    moments = [(v.mean(axis=0), np.cov(v.T)) for v in (np.concatenate(s) for s in sides)]
    assert e.value == pytest.approx(frechet_distance(*moments[0], *moments[1]), rel=1e-9)
    assert e.low < e.value < e.high
    assert found.share == pytest.approx(1)
    assert (found.n_real, found.n_synth) == tuple(sum(len(v) for v in s) for s in sides)
    assert e.floor_n == sizes[0] // 2 if sizes[0] > 3 else np.isnan(e.floor)
    few = slices_estimate(lambda: iter(sides[0]), lambda: iter(sides[1]), sizes, d, rounds=20, components=2)
    assert few.estimate.value == e.value
    assert 0 < few.share < 1
    assert few.components == 2


def test_interval_of_streamed_slices_sees_what_real_ones_never_do() -> None:
    """Synthetic volumes that differ where real ones are all alike: a few components of both sets hold that."""
    rng = np.random.default_rng(4)
    real = [rng.standard_normal((40, 6)) * [3, 2, 1, 0.1, 0.1, 0.1] for _ in range(10)]
    synth = [rng.standard_normal((40, 6)) * [3, 2, 1, 0.1, 0.1, 0.1] + [0, 0, 0, 0, 0, rng.normal(3, 2)] for _ in real]
    widths = []
    for components in (3, 6):
        e = slices_estimate(
            lambda: iter(real), lambda: iter(synth), (10, 10), 6, rounds=400, components=components
        ).estimate
        widths.append(e.high - e.low)
    assert widths[0] == pytest.approx(widths[1], rel=0.1)
    assert widths[0] > 5


def test_floor_of_streamed_slices_is_that_of_two_halves() -> None:
    """Four real volumes have three pairs of halves, and each pair of them six synthetic partners."""
    rng = np.random.default_rng(3)
    real, synth = ([rng.standard_normal((7, 3)) + k for _ in range(4)] for k in (0.0, 0.3))
    e = slices_estimate(lambda: iter(real), lambda: iter(synth), (4, 4), 3, splits=1, rounds=20).estimate

    def joined(side: list[np.ndarray], pair: tuple[int, int]) -> np.ndarray:
        return np.concatenate([side[k] for k in pair])

    pairs = list(combinations(range(4), 2))
    floors = [frechet_of_features(joined(real, p), joined(real, q)) for p in pairs for q in pairs if not {*p} & {*q}]
    same = [frechet_of_features(joined(real, p), joined(synth, q)) for p in pairs for q in pairs]
    assert e.floor_n == 2
    assert min(abs(e.floor - f) for f in floors) < 1e-9 * e.floor
    assert min(abs(e.same_n - s) for s in same) < 1e-9 * e.same_n


def test_memory_does_not_grow_with_the_set(sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """At no time are more than three batches of volumes alive."""
    import weakref

    alive: list[weakref.ref] = []
    most = 0
    make = Volume.__post_init__

    def watched(self: Volume) -> None:
        nonlocal most
        make(self)
        alive.append(weakref.ref(self.hu))
        most = max(most, sum(r() is not None for r in alive))

    monkeypatch.setattr(Volume, "__post_init__", watched)
    evaluate(sets["real"], sets["train"], EvaluateSettings(rounds=10, batch=2, all_slices=False), progress=False)
    assert len(alive) >= 18
    assert most <= 8


def test_nifti_dicom_and_store_of_the_same_heads_give_the_same_numbers(sets: dict[str, Path], tmp_path: Path) -> None:
    quick = EvaluateSettings(rounds=10, all_slices=False)
    one, other = (
        evaluate(sets["real"], sets[k], quick, cache=tmp_path / "cache", progress=False) for k in ("dicom", "nifti")
    )
    assert sorted(one.synth.digests) != []
    assert len(one.synth.names) == len(other.synth.names) == 3
    assert row(one, "FID-Ax").value == pytest.approx(row(other, "FID-Ax").value, rel=1e-5)
    assert quantity(one, "Brain").synth_mean == pytest.approx(quantity(other, "Brain").synth_mean, rel=1e-9)


def test_ms_ssim_takes_a_brighter_brain_for_the_same_structure() -> None:
    """2 HU of offset in the brain, in whose window 0 of [-1, 1] lies amid the brain, are hardly a difference."""
    hu = np.repeat(np.repeat(brainy_head(0), 2, axis=1), 2, axis=2)
    brighter = np.where((hu > 0) & (hu < 60), hu + 2, hu).astype(np.int16)
    frame = Frame(hu.shape[1:], (5.0, 2.25, 2.25), len(hu))
    correct, _ = _similarities(hu, brighter, frame, BRAIN)
    other, _ = _similarities(hu, np.repeat(np.repeat(brainy_head(1), 2, axis=1), 2, axis=2), frame, BRAIN)
    assert 0.99 < correct < 1
    assert other < 0.9


def test_resampled_heads_stay_at_their_depth(tmp_path: Path) -> None:
    """Heads below air, and the same on a finer grid: no further apart than two halves of the real ones."""
    for i in range(8):
        hu = np.pad(brainy_head(i), ((4, 0), (0, 0), (0, 0)), constant_values=-1024)
        fine = np.repeat(np.repeat(hu, 2, axis=1), 2, axis=2)
        for name, image, pixel in (("real", hu, 4.5), ("fine", fine, 2.25)):
            volume = Volume.regular(image, (5.0, pixel, pixel))
            put_volume(tmp_path / name, volume, id=f"p{i}", patient=f"p{i}", split="train", vertex_slice=4)
    settings = EvaluateSettings(rounds=10, all_slices=False, resample=True)
    found = evaluate(tmp_path / "real", tmp_path / "fine", settings, progress=False)
    for distance in (r.estimate for r in found.distances if r.name.endswith("unbiased")):
        assert distance.value < distance.floor


def test_two_splits_of_a_store_are_not_one_set(tmp_path: Path) -> None:
    for i in range(4):
        volume = Volume.regular(brainy_head(i), SPACING)
        split = "train" if i < 2 else "val"
        put_volume(tmp_path / "s", volume, id=f"p{i}", patient=f"p{i}", split=split, vertex_slice=0)
    settings = EvaluateSettings(rounds=10, all_slices=False)
    found = evaluate(tmp_path / "s", tmp_path / "s", settings, splits=("train", "val", "all"), progress=False)
    assert not any("on both sides" in n or "in both sets" in n for n in found.notices)


def test_second_scans_are_known_by_their_patients(tmp_path: Path) -> None:
    """Follow-ups lie side by side in an archive: they are no pair whose likeness tells how varied the set is."""
    rng = np.random.default_rng(0)
    for i in range(12):
        head = brainy_head(i // 2)
        hu = np.where(head > -500, head + rng.integers(-2, 3, head.shape), head).astype(np.int16)
        volume = Volume.regular(hu, SPACING)
        for name, patient in (("own", f"p{i // 2}"), ("one", "ANON")):
            put_volume(tmp_path / name, volume, id=f"s{i:02d}", patient=patient, split="train", vertex_slice=0)
    quick = EvaluateSettings(rounds=20, all_slices=False)
    own, one = (evaluate(tmp_path / name, tmp_path / "own", quick, progress=False) for name in ("own", "one"))
    assert any("12 volumes of 6 patients, by their names" in n for n in own.notices)
    assert any("all 12 volumes have the same patient name, ANON" in n for n in one.notices)
    others, itself = (
        next(m.real_mean for m in found.measurements if m.name.startswith("MS-SSIM of pairs, legacy, [-1024"))
        for found in (own, one)
    )
    assert others < itself
    fid = row(own, "FID-Ax"), row(one, "FID-Ax")
    assert fid[0].value == fid[1].value
    assert fid[0].floor > 1.5 * fid[1].floor


def test_what_must_be_said_is_said(sets: dict[str, Path], tmp_path: Path) -> None:
    quick = EvaluateSettings(rounds=10, all_slices=False)
    same = evaluate(sets["real"], sets["real"], quick, progress=False)
    again = store(tmp_path / "again", [brainy_head(100 + i) for i in range(3)])
    shared = evaluate(sets["real"], sets["honest"], quick, train=again, progress=False)
    assert any(n.startswith("3 patients (p000, …) are, by their names, in both") for n in shared.notices)
    assert any("on both sides" in n for n in same.notices)
    assert row(same, "FID-Ax").value == pytest.approx(0, abs=1e-6)
    bare = [np.where(brainy_head(i) > 100, brainy_head(i), np.int16(-1000)) for i in range(4)]
    empty = evaluate(sets["real"], store(tmp_path / "bare", bare), quick, progress=False)
    assert any("no brain found in 4 of 4" in n and "cannot be compared" in n for n in empty.notices)
    assert not [r for r in empty.measurements if r.name == "Grey matter"]
    assert np.isfinite(row(empty, "FID-Ax").value)
    holes = tmp_path / "holes"
    for i in range(2):
        write_nifti(Volume.regular(brainy_head(i), SPACING), holes / f"{i}.nii")
    import nibabel as nib

    image = nib.load(holes / "0.nii")
    values = image.get_fdata()
    values[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(values.astype(np.float32), image.affine), holes / "0.nii")
    (holes / "2.nii").write_bytes(b"damaged")
    damaged = evaluate(sets["real"], holes, quick, progress=False)
    assert any("0.nii: 1 non-finite voxels set to air" in n for n in damaged.notices)
    assert any(n.startswith("left out:") and "2.nii" in n for n in damaged.notices)
    assert any("2 volumes are too few" in n for n in damaged.notices)
    unchecked = replace(quick, extractor="radimagenet")
    for settings, told in ((unchecked, True), (replace(unchecked, weights_sha256="0123abcd"), False)):
        found = evaluate(sets["real"], sets["honest"], settings, progress=False)
        assert any("EvaluateSettings.weights_sha256 was not given" in n for n in found.notices) == told


def _fails(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", *map(str, argv)])
    assert stop.value.code == 1
    err = capsys.readouterr().err.strip()
    last = err.splitlines()[-1]
    assert last.startswith("slicewise evaluate: ")
    assert "Traceback" not in err
    return last


def test_bad_input_is_one_line_and_writes_nothing(sets: dict[str, Path], tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    single = store(tmp_path / "single", [brainy_head(0)])
    flat = store(tmp_path / "flat", [brainy_head(0), np.full((SHAPE[0], SHAPE[1], SHAPE[1]), -1000, np.int16)])
    other = tmp_path / "other"
    for i in range(2):
        volume = Volume.regular(toy_head(i, 14, 64), (5.0, 3.4, 3.4))
        put_volume(other, volume, id=f"o{i}", patient=f"o{i}", split="train", vertex_slice=0)
    (tmp_path / "empty").mkdir()
    for arguments, reason in [
        ((sets["real"], tmp_path / "absent"), "absent: no such file"),
        ((tmp_path / "empty", sets["real"]), "no CT volume here"),
        ((sets["real"], single), "single: 1 usable volume where a comparison needs two or more"),
        ((sets["real"], flat), "every voxel is -1000 HU"),
        ((sets["real"], other), r"SYNTH .*64 x 64 pixels of 3.4 .*first real volume has 48 x 48.*--resample"),
        ((sets["real"], sets["honest"], "--real-split", "nope"), "unknown split"),
        ((sets["real"], sets["honest"], "--real-split", "test"), "no volume in the test split"),
        ((sets["real"], sets["honest"], "--train", single), "the audit needs two or more"),
        ((sets["real"], sets["honest"], "--brain", "70", "-10"), "the window is empty"),
        ((sets["real"], sets["honest"], "--whole", "-10", "70"), "one window"),
        ((sets["real"], sets["honest"], "--batch", "1"), "--batch 1: must be 2 or more"),
    ]:
        assert re.search(reason, _fails(capsys, *arguments, "--out", out)), arguments
        assert not [p for p in out.glob("*") if p.name != "cache"], "nothing but what was computed is left"
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in _fails(capsys, sets["real"], sets["honest"], "--out", tmp_path / "file")
    quick = ["--rounds", "10", "--no-all-slices", "--out", str(out)]
    cli.main(["evaluate", str(sets["real"]), str(other), "--resample", *quick])
    printed = capsys.readouterr().out
    assert "2 volumes were resampled onto 48 x 48" in printed
    assert "FID-Ax" in printed
    assert (out / "evaluation.html").is_file()
    assert (out / "config.toml").is_file()


def test_numbers_are_printed_with_the_digits_they_deserve() -> None:
    assert [number(v) for v in (0.0, 12.3456, 0.012345, 1234.5, -3.21, float("nan"))] == [
        "0.00", "12.3", "0.0123", "1234", "−3.21", "–",
    ]  # fmt: skip
    assert plus_minus(31.2345, 0.4567) == "31.23 ± 0.46"
    assert plus_minus(1234.5, 56.7) == "1234 ± 57"
    assert plus_minus(float("nan"), 1) == "–"
    assert plus_minus(1.0, 0.0) == "1.00"
    assert number(2.5, sign=True) == "+2.50"
    assert interval(1.0, 2.0) == " (1.00 … 2.00)"
    assert interval(float("nan"), 2.0) == ""


def test_a_row_draws_persons_not_volumes():
    """Four scans of each of six persons say no more than one of each: intervals must be those of six, not of 24."""
    rng = np.random.default_rng(0)
    real, synth = (np.repeat(rng.normal(0, 1, 6), 4) for _ in range(2))
    values = [[np.array([v]) for v in side] for side in (real, synth)]
    persons = [n // 4 for n in range(24)]
    apart = measurement("group", "name", "HU", *values)
    together = measurement("group", "name", "HU", *values, patients=(persons, persons))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    once = measurement("group", "name", "HU", *([side[::4] for side in values]))
    assert together.high - together.low == pytest.approx(once.high - once.low, rel=0.2)
