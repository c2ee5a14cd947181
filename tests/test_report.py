"""Statistics of sets, and the report: whole, self-contained, true to its numbers, flat in memory."""

import gc
import json
import math
import re
import tracemalloc
from functools import lru_cache
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import ndimage

from slicewise.errors import UserError
from slicewise.metrics.reference import (
    DEPTH_EDGES_MM,
    ReferenceStats,
    StatsSum,
    measure,
    measure_reference,
)
from slicewise.metrics.tissue import MIN_VOXELS
from slicewise.reporting import generated
from slicewise.reporting.generated import write_report, write_run_report
from slicewise.volume import Volume

SPACING = (5.0, 3.0, 3.0)


@lru_cache
def skull_and_tissue():
    """Radius of every voxel in mm, and which brain voxels are grey: a ball of folds in a shell."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip((32, 64, 64), SPACING)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    folds = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(z.shape), (0.8, 1.5, 1.5))
    return np.sqrt(z**2 + y**2 + x**2), folds


def head(seed: int, shift: float = 0.0, drift: float = 0.0) -> Volume:
    """A ball of white (27 HU), grey (36) and CSF (8) in a skull; `shift` in HU moves the brain, `drift` walks it."""
    rng = np.random.default_rng(seed)
    radius, folds = skull_and_tissue()
    low, high = np.quantile(folds, [0.08, 0.55])
    hu = np.where(folds < low, 8.0, np.where(folds < high, 27.0, 36.0)) + rng.normal(0, 3, radius.shape)
    hu += shift + drift * (np.arange(len(radius)) % 2)[:, None, None]
    hu = np.where(radius < 66, hu, np.where(radius < 75, 900.0, -1000.0))
    return Volume.regular(np.rint(hu).astype(np.int16), SPACING)


@lru_cache
def reference() -> ReferenceStats:
    return measure_reference((head(seed) for seed in range(5)), "five balls")


def test_measure_sees_what_was_put_in():
    stats = measure(head(0))
    assert stats.scalars["grey"] == pytest.approx(36, abs=2)
    assert stats.scalars["white"] == pytest.approx(27, abs=2)
    assert stats.brain_histogram[3].sum() == pytest.approx(1, abs=0.01)
    assert (stats.brain_histogram[:3].sum(axis=0) <= stats.brain_histogram[3] + 1e-9).all()
    assert stats.head_histogram.sum() == pytest.approx(1, abs=1e-6)
    first = np.flatnonzero(np.isfinite(stats.profile))[0]
    assert stats.depth_mm[first] == 0
    assert stats.depth_mm[first + 3] == pytest.approx(15)


def test_a_brain_of_few_voxels_is_not_measured():
    volume = head(0)
    mask = np.zeros(volume.hu.shape, bool)
    mask[16].ravel()[np.flatnonzero(skull_and_tissue()[0][16].ravel() < 66)[: MIN_VOXELS - 1]] = True
    stats = measure(volume, mask)
    assert np.isfinite(stats.profile).sum() == 1
    assert all(math.isnan(value) for value in stats.scalars.values())
    mask[17] = mask[16]
    assert math.isfinite(measure(volume, mask).scalars["grey"])


def test_a_set_is_the_sum_of_its_volumes():
    each = [measure(head(seed)) for seed in range(5)]
    for key in ("grey", "white", "csf", "brain", "noise", "steps"):
        values = [s.scalars[key] for s in each]
        assert reference().means[key] == pytest.approx(np.mean(values))
        assert reference().stds[key] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    np.testing.assert_allclose(reference().brain_histogram, np.mean([s.brain_histogram for s in each], axis=0))
    steps = np.concatenate([s.steps for s in each])
    assert sum(reference().step_counts) == len(steps)
    assert reference().mean_step == pytest.approx(steps.mean(), abs=0.03)
    at_15_mm = [s.profile[np.isclose(s.depth_mm, 15.0)][0] for s in each]
    bin_15 = int(np.digitize(15.0, DEPTH_EDGES_MM)) - 1
    assert reference().profile_mean[bin_15] == pytest.approx(np.mean(at_15_mm))
    assert reference().profile_std[bin_15] == pytest.approx(np.std(at_15_mm, ddof=1))


def test_a_shift_and_a_jitter_show():
    moved = measure_reference(head(seed, shift=5.0, drift=3.0) for seed in range(2))
    for key in ("grey", "white", "brain"):
        assert moved.means[key] - reference().means[key] == pytest.approx(6.5, abs=1.0)
    assert moved.mean_step == pytest.approx(3.0, abs=0.5)
    assert reference().mean_step < 1.0


def test_json_round_trip(tmp_path):
    reference().save(tmp_path / "new" / "reference.json")
    again = ReferenceStats.load(tmp_path / "new" / "reference.json")
    assert again.to_json() == reference().to_json()
    assert len(again.to_json()) < 20_000
    for key, value in reference().means.items():
        assert again.means[key] == pytest.approx(value, rel=1e-5)
    none = measure_reference([Volume.regular(np.full((4, 32, 32), -1000, np.int16), SPACING)])
    assert none.without_brain == 1
    assert math.isnan(ReferenceStats.from_json(none.to_json()).means["grey"])
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["reference.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '"x"', "not json", None])
def test_other_json_is_refused(tmp_path, text):
    path = tmp_path / "reference.json"
    if text is None:
        values = json.loads(reference().to_json())
        values["head_histogram"] = values["head_histogram"][:-1]
        text = json.dumps(values)
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(path))) as info:
        ReferenceStats.load(path)
    assert "\n" not in str(info.value)
    with pytest.raises(UserError):
        ReferenceStats.load(tmp_path / "absent.json")


def test_an_empty_set_is_refused():
    with pytest.raises(UserError, match="no volumes"):
        measure_reference([])


class Page(HTMLParser):
    """Tags that are open, attributes that point anywhere, ids, and the text."""

    VOID = ("meta", "img", "br", "path", "use", "link", "input")

    def __init__(self, html: str):
        super().__init__()
        self.open, self.links, self.ids, self.text, self.images = [], [], [], "", 0
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.images += tag == "img"
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href")]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href")]
        self.ids += [v for k, v in attributes if k == "id"]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


RUN = {
    "model": "ball-64 <0.1>",
    "nfe_per_slice": 20,
    "seconds_per_volume": 12.5,
    "settings": {"seed": 7, "chain": {"sampler": "dpmpp_2m", "steps": 20}, "calibrate": "after"},
}


def run_of(count, raw=True):
    for index in range(count):
        yield f"volume-{index:04d}", head(50 + index, drift=3.0) if raw else None, head(50 + index)


def test_report_is_one_file_with_everything(tmp_path):
    out = tmp_path / "new" / "report.html"
    write_report(out, run_of(3), reference(), RUN, pictures=2)
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]
    html = out.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == [], "every tag is closed"
    assert page.links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import", html)
    assert page.images == 2
    assert "The first 2 of 3 volumes" in page.text
    assert "Every volume in this report is synthetic" in page.text
    for expected in (
        "ball-64 <0.1>",
        "dpmpp_2m",
        "chain.steps",
        "0:00:38",
        "0.39 s",
        "five balls",
        "without calibration",
    ):
        assert expected in page.text, expected
    assert "#010203" not in html
    assert "var(--ink)" in html
    assert "prefers-color-scheme: dark" in html
    assert len(page.ids) == len(set(page.ids)), "drawings share no ids"
    named = set(re.findall(r"url\(#([^)]+)\)", html)) | {link[1:] for link in page.links if link.startswith("#")}
    assert named, "and find their own"
    assert named <= set(page.ids), "and find their own"


def cells(html, label):
    """The cells of one table row."""
    row = re.search(rf"<tr><td>{label}</td>(.*?)</tr>", html, re.S).group(1)
    return [
        re.sub("<.*?>", "", c).strip().replace("\N{MINUS SIGN}", "-") for c in re.findall("<td>(.*?)</td>", row, re.S)
    ]


def test_the_table_is_true(tmp_path):
    after = write_report(tmp_path / "r.html", run_of(3), reference(), RUN)
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    raw, calibrated, known, difference, target = cells(html, "Grey matter")
    assert calibrated == f"{after.means['grey']:.1f} ± {after.stds['grey']:.1f}"
    assert known == f"{reference().means['grey']:.1f} ± {reference().stds['grey']:.1f}"
    assert float(difference) == pytest.approx(after.means["grey"] - reference().means["grey"], abs=0.051)
    assert target == "reached"
    assert float(raw.split()[0]) == pytest.approx(after.means["grey"] + 1.5, abs=0.7)
    *_, ratio, target = cells(html, "Step between slices")
    assert float(ratio.split()[0]) == pytest.approx(after.mean_step / reference().mean_step, abs=0.006)
    write_report(tmp_path / "bad.html", ((n, None, v) for n, v, _ in run_of(2)), reference(), RUN)
    bad = (tmp_path / "bad.html").read_text(encoding="utf-8")
    assert cells(bad, "Step between slices")[-1] == "missed"
    write_report(tmp_path / "far.html", [("far", None, head(0, shift=-6.0))], reference(), RUN)
    assert cells((tmp_path / "far.html").read_text(encoding="utf-8"), "White matter")[-1] == "missed"


def test_report_without_raw_reference_or_brain(tmp_path):
    air = Volume.regular(np.full((6, 32, 32), -1000, np.int16), SPACING)
    write_report(tmp_path / "r.html", [("a", None, head(1)), ("air", None, air)], None, {})
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "In 1 of 2 volumes no brain was found" in page.text
    assert "without calibration" not in page.text
    assert "reference" not in page.text.lower()
    with pytest.raises(UserError, match="no volumes"):
        write_report(tmp_path / "none.html", [], None, {})
    assert not (tmp_path / "none.html").exists()


def test_run_report_puts_pictures_beside(tmp_path):
    reference().save(tmp_path / "reference.json")
    paths = write_run_report(tmp_path / "run", run_of(2), tmp_path / "reference.json", RUN)
    assert [p.name for p in paths] == ["volume-0000.png", "volume-0001.png", "report.html"]
    assert all(p.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for p in paths[:2])
    assert ReferenceStats.load(tmp_path / "run" / "measured.json").count == 2
    assert write_run_report(tmp_path / "other", run_of(1), tmp_path / "absent.json", RUN)[-1].exists()


def test_a_report_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as info:
        write_report(tmp_path / "file" / "r.html", run_of(1), None, {})
    assert "\n" not in str(info.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_memory_does_not_grow_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "montage", lambda *a: None)
    monkeypatch.setattr(generated, "png", lambda *a, **k: b"")

    def peak(count):
        gc.collect()
        tracemalloc.start()
        write_report(tmp_path / "r.html", run_of(count, raw=False), None, {}, pictures=1)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)
    few, many = peak(2), peak(14)
    assert many < few + 6 * head(0).hu.nbytes  # held, twelve more volumes would be twice that


def test_sums_take_nothing_but_sums():
    def size():
        return sum(np.size(a) for v in vars(total).values() for a in (v if isinstance(v, list) else [v]))

    stats, total = measure(head(0)), StatsSum()
    total.add(stats)
    after_one = size()
    for _ in range(20):
        total.add(stats)
    assert size() == after_one
    assert total.count == 21
    assert total.result().means["grey"] == pytest.approx(stats.scalars["grey"])
    assert total.result().stds["grey"] == pytest.approx(0, abs=1e-5)
