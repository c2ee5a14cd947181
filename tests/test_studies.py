"""Studies run from end to end on toy heads, write what they say, and continue where they were."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import toy_head
from slicewise.data.phantom import PhantomSettings, make_phantom
from slicewise.errors import UserError
from slicewise.hu import HUScale
from slicewise.io.archive import read_volume
from slicewise.metrics.reference import measure
from slicewise.volume import Volume

STUDIES = Path(__file__).parent.parent / "studies"
TINY = "--quick --images 16 --volumes 1 --levels 2 --device cpu".split()


@pytest.fixture(scope="module", autouse=True)
def studies():
    """Their folder as the place of modules, as it is for a study that is run."""
    sys.path.insert(0, str(STUDIES))
    yield
    sys.path.remove(str(STUDIES))


@pytest.fixture(scope="module")
def figure_1(toy_store, tmp_path_factory):
    """(its module, its arguments, the work folder, the results) after Figure 1 has run."""
    work = tmp_path_factory.mktemp("studies")
    argv = ["--store", str(toy_store.path), "--work", str(work), "--out", str(work / "out"), *TINY]
    fig1 = importlib.import_module("fig1")
    fig1.main(argv)
    return fig1, argv, work


def _about(work: Path, name: str) -> dict:
    return json.loads((work / "out" / f"{name}.json").read_text())


def test_figure_1_measures_what_it_says(figure_1, toy_store):
    _, _, work = figure_1
    about = _about(work, "fig1")
    assert list(about["rows"]) == [
        "training data", "σ 0.01 – 68", "σ 0.01 – 1348", "σ 0.001 – 68", "σ 0.001 – 1348", "StyleGAN2-ADA", "StyleGAN3"
    ]  # fmt: skip
    assert about["budget"]["images"] == 16
    assert about["data"] == toy_store.fingerprint
    cvs = []
    for record in toy_store.select("train"):
        for hu in np.asarray(toy_store.hu(record)).astype(float):
            inside = hu[(hu > -10) & (hu < 70)]
            if inside.size >= 0.02 * hu.size:
                cvs.append(np.std(inside) / np.mean(inside))
    found = about["rows"]["training data"]
    assert found["slices"] == len(cvs)
    assert found["CV"] == pytest.approx(np.mean(cvs))
    assert found["variance of CV"] == pytest.approx(np.var(cvs))
    assert found["distance of CV"] == 0.0
    text = (work / "out" / "fig1.md").read_text()
    assert "16 × 16 pixels, 5 training heads; every model saw 16 slices" in text
    assert text.count("\n| ") == 9


def test_a_study_goes_on_where_it_was(figure_1, capsys):
    fig1, argv, work = figure_1
    made = {f: f.stat().st_mtime_ns for f in (work / "quick").rglob("*") if f.suffix in (".safetensors", ".dcm")}
    assert len({f.parent for f in made if f.name == "weights.safetensors"}) == 6
    picture = (work / "out" / "fig1.png").read_bytes()
    fig1.main(argv)
    assert {f: f.stat().st_mtime_ns for f in made} == made, "nothing is trained or drawn again"
    assert (work / "out" / "fig1.png").read_bytes() == picture
    assert (work / "out" / "fig1.md").read_text() in capsys.readouterr().out


def test_clean_mean_takes_the_models_of_figure_1(figure_1):
    _, argv, work = figure_1
    runs = {f: f.stat().st_mtime_ns for f in (work / "quick" / "fig1").rglob("weights.safetensors")}
    importlib.import_module("clean_mean").main(argv)
    assert {f: f.stat().st_mtime_ns for f in (work / "quick" / "fig1").rglob("weights.safetensors")} == runs
    rows, first = _about(work, "clean_mean")["rows"], _about(work, "fig1")["rows"]
    assert [r["noise left in, HU"] for r in rows.values()] == pytest.approx([0, 0, 20.475, 0, 2.0475])
    for low in ("0.01", "0.001"):
        assert rows[f"σmin {low}, clean mean"]["slices"] == first[f"σ {low} – 1348"]["slices"]
    volumes = [work / "quick" / "fig1" / f"sigma-0.01-1348{kind}-volumes" / "dicom" for kind in ("", "-pc_noisy")]
    clean, noisy = (read_volume(folder / "volume-0000").volume.hu for folder in volumes)
    assert clean.shape != noisy.shape or not np.array_equal(clean, noisy), "the samplers differ"


def test_figure_5_leaves_untouched_slices_as_far_off_as_their_contrast(figure_1, toy_store):
    _, argv, work = figure_1
    importlib.import_module("fig5").main(argv)
    rows = _about(work, "fig5")["rows"]
    assert list(rows) == [f"μ = {g:g}" for g in (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)]
    hu = np.asarray(toy_store.hu(toy_store.select("val")[0]))[6].astype(float)
    soft = hu[(hu > -150) & (hu < 150)]
    spread = np.abs(soft - soft.mean()).mean()  # (x - mean) μ + mean is |μ - 1| |x - mean| away from x
    for gain in (0.7, 0.9, 1.2):
        assert rows[f"μ = {gain:g}"]["untouched"] == pytest.approx(abs(gain - 1) * spread)
    assert rows["μ = 1"]["untouched"] == 0.0
    assert (work / "out" / "fig5.png").stat().st_size > 10_000


def test_figure_3_calibrates_the_volumes_of_figure_1_in_every_way(figure_1):
    _, argv, work = figure_1
    importlib.import_module("fig3").main(argv)
    names = ["held-out heads", "as generated", "matched to the seed slice", "matched to the predecessor", "IC-Net"]
    assert list(_about(work, "fig3")["rows"]) == names
    assert (work / "out" / "fig3.png").stat().st_size > 10_000


def test_figure_3_draws_from_a_checkpoint_as_it_is(figure_1, tmp_path):
    _, argv, work = figure_1
    run = work / "quick" / "fig1" / "sigma-0.01-68"
    argv = [str(tmp_path / "out") if word == str(work / "out") else word for word in argv]
    importlib.import_module("fig3").main([*argv, "--checkpoint", str(run)])
    about = json.loads((tmp_path / "out" / "fig3.json").read_text())
    assert about["budget"]["size"] == 16
    assert len(about["rows"]) == 5
    text = (tmp_path / "out" / "fig3.md").read_text()
    assert "1 volumes of the checkpoint sigma-0.01-68" in text
    assert "every other model saw 16 slices" in text
    assert (work / "quick" / "fig3" / "checkpoint-volumes" / "generate.json").is_file()


def test_figure_3_finds_a_drift_that_was_put_in():
    hu = toy_head(3, slices=20, size=48)
    drifting = np.where((hu > -100) & (hu < 200), hu + np.arange(20, dtype=np.int16)[:, None, None], hu)
    still, moved = (
        importlib.import_module("fig3").row([measure(Volume.regular(v.astype(np.int16), (5.0, 5.0, 5.0)))])
        for v in (hu, drifting)
    )
    assert still["volumes with brain"] == moved["volumes with brain"] == 1
    assert still["drift, HU a slice"] < 0.1
    assert moved["drift, HU a slice"] == pytest.approx(1.0, abs=0.1)
    assert moved["step between slices, HU"] == pytest.approx(1.0, abs=0.15)


def test_figure_2_trains_on_the_window_and_measures_in_it(figure_1):
    _, argv, work = figure_1
    fig2 = importlib.import_module("fig2")
    fig2.main(argv)
    rows = _about(work, "fig2")["rows"]
    assert list(rows) == ["held-out heads", "trained on the window", "trained on the whole range"]
    assert 0 < rows["held-out heads"]["step between slices, HU"] < 5
    drawn = read_volume(work / "quick" / "fig1" / "window-volumes" / "dicom" / "volume-0000").volume.hu
    assert drawn.min() >= -10, "a model of the window knows nothing beyond it"
    assert drawn.max() <= 70, "a model of the window knows nothing beyond it"


def test_a_brain_is_found_in_a_volume_that_was_clipped_to_the_window():
    volume = Volume.regular(toy_head(3, slices=20, size=48), (5.0, 5.0, 5.0))
    clipped = volume.with_hu(np.clip(volume.hu, -10, 70).astype(np.int16))
    whole, window = (importlib.import_module("fig2").measured(v) for v in (volume, clipped))
    assert window.scalars["brain"] == pytest.approx(whole.scalars["brain"], abs=0.5)


def test_drift_sees_a_model_keep_an_offset_or_not():
    drift = importlib.import_module("drift")
    rng = np.random.default_rng(0)
    mask = np.zeros((4, 16, 16), bool)
    mask[:, 4:12, 4:12] = True
    hu = rng.integers(20, 40, (4, 2, 16, 16)).astype(np.int16)
    b = drift.Brains(hu, mask, np.zeros(4, np.float32), spread=2.0)
    assert b.pixels == 64
    assert drift.predicted(b, np.array([2.0 * 8]))[0] == pytest.approx(0.5)

    class Share:
        """Keeps a share of x, and takes the rest from 30 HU."""

        def __init__(self, share):
            self.share = share
            self.recipe = SimpleNamespace(scale=HUScale(), joint=True, sigma_min=0.001)

        def __call__(self, x, sigma, position):
            return self.share * x + (1 - self.share) * float(HUScale().encode(np.array(30.0)))

    for share in (1.0, 0.25):
        kept, error = drift.response(Share(share), b, 1.0, 0)
        true = np.array([v[m].mean() for v, m in zip(hu[:, 1], mask)])
        assert kept == pytest.approx(share, abs=0.01)
        assert error == pytest.approx(np.sqrt(np.mean(((1 - share) * (true - 30)) ** 2)), abs=0.3)
    # A curve that falls like the prediction crosses a half where it says.
    assert drift.half_kept(drift.predicted(b, drift.NOISE_HU)) == pytest.approx(16.0, rel=0.1)


def test_the_middle_of_a_brain_is_the_share_about_its_centre():
    drift = importlib.import_module("drift")
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:33, :33]
    mask = np.stack([(y - 16) ** 2 + (x - 16) ** 2 < radius**2 for radius in (9.0, 12.0, 14.0)])
    hu = rng.integers(20, 40, (3, 2, 33, 33)).astype(np.int16)
    part = drift.middle(drift.Brains(hu, mask, np.zeros(3, np.float32), spread=2.0), 1 / 4)
    for whole, kept, radius in zip(mask, part.mask, (4.5, 6.0, 7.0)):
        assert kept.sum() == round(whole.sum() / 4)
        assert not (kept & ~whole).any()
        assert np.sqrt((y - 16) ** 2 + (x - 16) ** 2)[kept].max() == pytest.approx(radius, abs=1)
    means = [[h[m].mean() for h in pair] for pair, m in zip(hu, part.mask)]
    assert part.spread == pytest.approx(np.std([after - before for before, after in means]))


def test_drift_takes_models_of_both_ranges(figure_1):
    _, argv, work = figure_1
    drift = importlib.import_module("drift")
    drift.main(argv)
    rows = _about(work, "drift")["rows"]
    assert list(rows) == list(drift.MODELS)
    assert rows["whole, linear, joint"]["1 HU in x"] == pytest.approx(2 / 4095)
    assert rows["window, linear, joint"]["1 HU in x"] == pytest.approx(2 / 80)


def test_table_1_sets_every_model_beside_the_papers(figure_1):
    _, argv, work = figure_1
    table1 = importlib.import_module("table1")
    table1.main([*argv, "--volumes", "2"])
    rows = _about(work, "table1")["rows"]
    assert list(rows) == [*table1.PAPER["whole"], "real against real"]
    for column in table1.PAPER["whole"]:
        assert rows[column]["whole, FID-Ax"] > 0
        assert rows[column]["window, bMMD²"] > 0
    text = (work / "out" / "table1.md").read_text()
    assert "| window, FID-Ax |" in text
    assert (work / "out" / "fig4.png").stat().st_size > 10_000


def test_table_2_scores_by_the_two_worst_interfaces():
    table2 = importlib.import_module("table2")
    mask = np.zeros((8, 16, 16), bool)
    mask[1:7, 4:10, 4:10] = True
    place, overlap = table2.overlaps(mask)
    assert place == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert overlap == pytest.approx(np.ones(5))
    moved = mask.copy()
    moved[3] = np.roll(mask[3], 3, axis=1)  # by 3 of 6 columns: 3 are shared, 4 with a pixel's tolerance
    assert table2.overlaps(moved)[1] == pytest.approx([1, 4 / 6, 4 / 6, 1, 1])
    base = table2.Usual(np.full(5, 0.9), np.full(5, 0.8), np.linspace(-2.0, 0.0, 101))
    assert table2.worst(moved, base) == pytest.approx((4 / 6 - 0.9) / 0.1)
    gap = mask.copy()
    gap[3] = False
    assert table2.worst(gap, base) == pytest.approx(-9.0)
    assert np.isnan(table2.worst(mask[:2], base))
    # 5th percentile -1.9, median -1
    assert [table2.score(v, base) for v in (-1.8, -1.95, -2.7, -2.9, np.nan)] == [3, 2, 2, 1, 1]


def test_table_2_finds_what_was_broken_on_purpose():
    """With the true labels of phantoms: broken heads are discontinuous, and clearly worse than whole ones."""
    table2 = importlib.import_module("table2")
    # Three heads tell little of what is usual: about one in three such fours passes all of this, and these do.
    heads = [make_phantom(seed, PhantomSettings(size=128)) for seed in range(4, 8)]
    labels = [table2.classes(h.labels) for h in heads]
    for number in (1, 4, 5):  # skull, ventricles, sulci
        masks = [found == number for found in labels]
        base = table2.usual(masks[:3])
        broken = table2.shifted(masks[3], 4), table2.foreign(masks[3], np.roll(masks[0], 3, axis=1))
        for mask in broken:
            assert table2.score(table2.worst(mask, base), base) == 1
            assert table2.worst(mask, base) < table2.worst(masks[3], base) - 0.4


def test_table_2_runs_and_goes_on_where_it_was(figure_1):
    _, argv, work = figure_1
    table2 = importlib.import_module("table2")
    few = [*argv[2:], "--heads", "2"]  # it takes no --store: its heads have labels
    table2.main(few)
    rows = _about(work, "table2")["rows"]
    assert list(rows) == list(table2.STRUCTURES)
    assert "128 × 128 pixels, 2 training heads" in (work / "out" / "table2.md").read_text()
    assert all(1 <= v <= 3 for row in rows.values() for k, v in row.items() if k != "Dice")
    made = {f: f.stat().st_mtime_ns for f in (work / "quick" / "table2").rglob("*.safetensors")}
    table2.main([*few, "--checkpoint", "release"])  # which is what it takes of itself
    assert _about(work, "table2")["rows"] == rows
    assert {f: f.stat().st_mtime_ns for f in made} == made


def test_bad_data_are_said_in_one_line(figure_1, tmp_path):
    fig1, _, _ = figure_1
    with pytest.raises(UserError, match="no prepared data"):
        fig1.main(["--store", str(tmp_path / "absent"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_page_shows_every_study_as_it_came_out():
    """docs/results/paper.md holds the caption, the tables and the picture that each program wrote."""
    results = STUDIES.parent / "docs" / "results"
    page = (results / "paper.md").read_text()
    for program in STUDIES.glob("*.py"):
        if program.stem != "steps":
            assert (results / f"{program.stem}.md").read_text().strip() in page, program.stem
            assert f"({'fig4' if program.stem == 'table1' else program.stem}.png)" in page
    for picture in re.findall(r"\]\((\w+\.png)\)", page):
        assert (results / picture).is_file()
