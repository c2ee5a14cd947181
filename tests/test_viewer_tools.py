"""The tools over the picture, in a real browser: what is measured is the array's, slabs, differences and labels are
what NumPy makes of it, and the page is usable by a screen reader."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import Listener, accessible, browser, chromium
from slicewise.errors import UserError
from slicewise.io.dicom_seg import write_segmentation
from slicewise.io.dicom_write import SyntheticOrigin, write_series
from slicewise.io.nifti import write_nifti
from slicewise.viewer.app import viewer
from slicewise.viewer.labels import on_grid, read_labels
from slicewise.viewer.shelf import Entry, Shelf, entries, series_information
from slicewise.volume import Acquisition, Volume
from test_viewer import box, noise, served, settle, until

SPACING = (5.0, 6.0, 7.0)
FIRST, SECOND = noise((12, 24, 20), 5) // 2, noise((12, 24, 20), 6) // 2
LABELS = np.zeros((12, 24, 20), np.int16)
LABELS[4:9, 6:18, 3:9], LABELS[4:9, 6:18, 11:17] = 1, 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synthetic series of one grid, and labels of the first as NIfTI and as a DICOM segmentation."""
    folder = tmp_path_factory.mktemp("tools")
    origin = SyntheticOrigin("noise", "1", seed=0)
    for name, hu in (("a", FIRST), ("b", SECOND)):
        write_series(Volume.regular(hu, SPACING), folder / name, synthetic=origin, patient_id=name)
    write_nifti(Volume.regular(LABELS, SPACING), folder / "labels.nii.gz")
    (folder / "labels.json").write_text(json.dumps({"skull": 1, "brain stem": 4}))
    write_segmentation(folder / "labels.nii.gz", folder / "a", folder / "seg.dcm")
    return folder


@pytest.fixture(scope="module")
def page(files: Path) -> Iterator[Any]:
    if chromium() is None:
        pytest.fail("Chromium is missing; make tools (or apt-get install chromium) brings it")
    found, _ = entries([files / "a", files / "b"])
    app, path = viewer(Shelf(found, [read_labels(files / name) for name in ("labels.nii.gz", "seg.dcm")]))
    with served(app) as base, browser() as opened:
        tab = opened.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
        tab.set_default_timeout(120_000)
        tab.heard = Listener(tab)
        tab.goto(base + path)
        tab.wait_for_selector("body[data-ready]")
        until(tab, "slicewise.sides.every(s => s.information)")
        tab.select_option("#labels", "")
        yield tab
        assert [e for e in tab.heard.errors if "422" not in e] == []  # the labels of another volume are refused


def fresh(page: Any, view: str = "axial") -> dict[str, float]:
    """One view, at the middle, no tool, slab or measurement; the box of the left picture."""
    page.evaluate(
        """view => { document.querySelectorAll('#views button').forEach(b => b.textContent === view && b.click());
        document.getElementById('tool-slices').click();
        slicewise.sides.forEach(({ panel }) => {
          panel.resetView(); panel.middle(); panel.overlay.shapes = []; panel.draw(); }); }""",
        view,
    )
    page.select_option("#slab", "off")
    settle(page)
    return box(page, 0)


def drag(page: Any, tool: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw with a tool between two points of the left picture, in shares of its sides."""
    page.click(f"#tool-{tool}")
    at = box(page, 0)
    page.mouse.move(at["x"] + start[0] * at["width"], at["y"] + start[1] * at["height"])
    page.mouse.down()
    page.mouse.move(at["x"] + end[0] * at["width"], at["y"] + end[1] * at["height"], steps=4)
    page.mouse.up()
    settle(page)


def voxel(page: Any, share: tuple[float, float]) -> np.ndarray:
    """The voxel under a point of the left picture (x, y, z in RAS order), as NiiVue finds it."""
    at = box(page, 0)
    x, y = at["x"] + share[0] * at["width"], at["y"] + share[1] * at["height"]
    return np.array(page.evaluate(f"slicewise.sides[0].panel.at({x}, {y}).voxel"))


def said(page: Any) -> str:
    return page.locator(".readout").nth(0).inner_text().replace("\u2212", "-")


def test_overlay_and_picture_agree_on_every_place(page):
    """mm by our overlay = mm by NiiVue, at points all over the three planes; and back to the same pixel."""
    fresh(page, "all")
    wrong = page.evaluate(
        """() => { const panel = slicewise.sides[0].panel, { nv, overlay } = panel; let worst = 0, seen = 0;
        for (const tile of overlay.tiles()) for (let i = 1; i < 10; i++) for (let j = 1; j < 10; j++) {
          const x = tile.left + tile.width * i / 10, y = tile.top + tile.height * j / 10;
          const frac = nv.canvasPos2frac([x, y]);
          if (frac[0] < 0) continue;
          const mm = tile.toMm(x, y, panel.crosshair()[tile.normal]), back = tile.toCanvas(mm);
          const known = nv.frac2mm(frac);
          seen += 1;
          for (const axis of [tile.across, tile.up]) worst = Math.max(worst, Math.abs(mm[axis] - known[axis]));
          worst = Math.max(worst, Math.abs(back[0] - x), Math.abs(back[1] - y)); }
        return [worst, seen]; }"""
    )
    assert wrong[0] < 0.05
    assert wrong[1] > 100


def test_letters_name_the_side_that_is_there(page):
    """The left of an axial picture is the patient's right: voxels there have the greater x in RAS order."""
    fresh(page)
    assert voxel(page, (0.3, 0.5))[0] > voxel(page, (0.7, 0.5))[0]
    drawn = page.evaluate(
        """() => { const words = [], real = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, x, y) { words.push([text, x, y]); };
        slicewise.sides[0].panel.draw();
        CanvasRenderingContext2D.prototype.fillText = real;
        slicewise.sides[0].panel.draw();
        return words; }"""
    )
    place = {text: (x, y) for text, x, y in drawn}
    assert place["R"][0] < place["L"][0]
    assert place["A"][1] < place["P"][1]
    assert any("cm" in text for text in place)


def test_distance_and_angle_are_those_of_the_patient(page):
    fresh(page)
    start, end = (0.35, 0.4), (0.65, 0.6)
    drag(page, "distance", start, end)
    shape = page.evaluate("slicewise.sides[0].panel.overlay.shapes[0]")
    a, b = (np.array(p) for p in shape["points"])
    mm = float(re.search(r"([\d.]+) mm\b", said(page))[1])
    assert mm == pytest.approx(np.linalg.norm(a - b), abs=0.06)
    assert mm == pytest.approx(np.linalg.norm((voxel(page, start) - voxel(page, end)) * SPACING[::-1]), abs=9.3)
    drag(page, "angle", (0.6, 0.4), (0.4, 0.4))
    at = box(page, 0)
    page.mouse.click(at["x"] + 0.4 * at["width"], at["y"] + 0.7 * at["height"])
    settle(page)
    a, b, c = (np.array(p) for p in page.evaluate("slicewise.sides[0].panel.overlay.shapes[1].points"))
    cosine = (a - b) @ (c - b) / np.linalg.norm(a - b) / np.linalg.norm(c - b)
    degrees = float(re.search(r"([\d.]+)°", said(page))[1])
    assert degrees == pytest.approx(np.degrees(np.arccos(cosine)), abs=0.06)
    assert abs(degrees - 90) < 3
    page.keyboard.press("Delete")
    assert page.evaluate("slicewise.sides[0].panel.overlay.shapes.length") == 1
    page.keyboard.press("ArrowUp")
    settle(page)
    assert page.evaluate("slicewise.sides[0].panel.overlay.shapes.length") == 1, "kept, on its own slice"


def test_region_is_the_arrays(page):
    """Mean, SD, lowest and highest HU and area of an ellipse, against NumPy on the array that was written."""
    fresh(page)
    drag(page, "roi", (0.35, 0.3), (0.7, 0.65))
    a, b = (np.array(p) for p in page.evaluate("slicewise.sides[0].panel.overlay.shapes[0].points"))
    grid = page.evaluate("slicewise.sides[0].panel.grid()")
    k = round((a[2] - grid["origin"][2]) / grid["step"][2])
    ras = FIRST[::-1, ::-1, ::-1].transpose(2, 1, 0)[:, :, k].astype(float)
    x, y = (grid["origin"][i] + grid["step"][i] * np.arange(grid["dims"][i]) for i in (0, 1))
    middle, radius = (a + b) / 2, np.abs(a - b) / 2
    inside = ((x[:, None] - middle[0]) / radius[0]) ** 2 + ((y[None] - middle[1]) / radius[1]) ** 2 <= 1
    held = ras[inside]
    assert inside.sum() > 20
    found = re.search(r"mean (-?[\d.]+) SD ([\d.]+) HU, (-?\d+) to (-?\d+) HU, ([\d.]+) cm²", said(page))
    assert [float(v) for v in found.groups()] == pytest.approx(
        [held.mean(), held.std(), held.min(), held.max(), np.pi * radius[0] * radius[1] / 100], abs=0.06
    )


@pytest.mark.parametrize("view, axis", [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_slabs_are_numpys(page, view, axis):
    fresh(page, view)
    ras = FIRST[::-1, ::-1, ::-1].transpose(2, 1, 0)
    for kind, make in (("average", np.mean), ("mip", np.max), ("minip", np.min)):
        page.select_option("#slab", kind)
        page.select_option("[aria-label='Slab thickness']", "20")
        settle(page)
        got = np.array(page.evaluate("Array.from(slicewise.sides[0].panel.image())"), float)
        half = round((20 / (7.0, 6.0, 5.0)[axis] - 1) / 2 + 1e-9)
        expected = np.stack([make(ras.take(range(max(i - half, 0), min(i + half, ras.shape[axis] - 1) + 1), axis), axis)
                             for i in range(ras.shape[axis])], axis)  # fmt: skip
        assert half >= 1
        assert np.abs(got.reshape(ras.shape, order="F") - expected).max() <= (0.5 if kind == "average" else 0)
    assert "MinIP of" in said(page)
    page.select_option("#slab", "off")
    settle(page)
    assert (np.array(page.evaluate("Array.from(slicewise.sides[0].panel.image())")) == ras.ravel(order="F")).all()


def test_pan_takes_the_point_along(page):
    at = fresh(page)
    seen = voxel(page, (0.5, 0.5))
    drag(page, "pan", (0.5, 0.5), (0.6, 0.42))
    assert np.abs(voxel(page, (0.6, 0.42)) - seen).max() <= 1
    assert np.abs(voxel(page, (0.5, 0.5)) - seen).max() > 1
    page.keyboard.press("0")
    assert at == box(page, 0)


def test_typed_window_and_cine(page):
    fresh(page)
    page.fill("#width", "300")
    page.fill("#level", "-50")
    page.keyboard.press("Enter")
    settle(page)
    assert page.evaluate("[slicewise.lo, slicewise.hi]") == [-200, 100]
    page.fill("#width", "0")
    page.keyboard.press("Enter")
    settle(page)
    assert page.evaluate("[slicewise.lo, slicewise.hi]") == [-200, 100], "no such window"
    before = page.evaluate("slicewise.sides[0].panel.slice()")
    page.click("#cine")
    until(page, f"slicewise.sides[0].panel.slice() !== {before}")
    page.click("#cine")
    settle(page)
    stopped = page.evaluate("slicewise.sides[0].panel.slice()")
    page.wait_for_timeout(400)
    assert page.evaluate("slicewise.sides.map(s => s.panel.slice())") == [stopped] * 2, "both, and then none"


def test_difference_and_blink(page):
    fresh(page)
    page.click("#difference")
    until(page, "slicewise.sides[1].panel.isDifference && slicewise.sides[1].panel.about")
    got = np.array(page.evaluate("Array.from(slicewise.sides[1].panel.image())"))
    assert (got == (SECOND.astype(int) - FIRST)[::-1, ::-1, ::-1].transpose(2, 1, 0).ravel(order="F")).all()
    window = page.evaluate(
        "[slicewise.sides[1].panel.nv.volumes[0].cal_min, slicewise.sides[1].panel.nv.volumes[0].cal_max]"
    )
    assert window[0] == -window[1]
    page.click("#difference")
    until(page, "!slicewise.sides[1].panel.isDifference && slicewise.sides[1].panel.about")
    page.click("#blink")
    shown = "[...document.querySelectorAll('.panel')].map(p => getComputedStyle(p).visibility)"
    first = page.evaluate(shown)
    assert sorted(first) == ["hidden", "visible"], "in one place"
    assert box(page, 0) == box(page, 1), "in one place"
    until(page, f"JSON.stringify({shown}) !== '{json.dumps(first, separators=(',', ':'))}'")
    page.click("#blink")


def test_labels_lie_where_they_were_written(page, files):
    for name in ("labels.nii.gz", "seg.dcm"):
        labels = read_labels(files / name)
        found, _ = entries([files / "a", files / "b"])
        assert set(labels.names.values()) == {"skull", "brain stem"}
        back = on_grid(labels, found[0].read()).hu
        assert ((back > 0) == (LABELS > 0)).all()
        assert len(np.unique(back)) == 3
        assert len({(int(v), int(w)) for v, w in zip(back.ravel(), LABELS.ravel(), strict=True)}) == 3, "one to one"
    with pytest.raises(UserError, match="belongs to another volume"):
        on_grid(read_labels(files / "seg.dcm"), found[1].read())
    with pytest.raises(UserError, match="not a DICOM segmentation"):
        read_labels(next((files / "a").iterdir()))
    fresh(page)
    page.keyboard.press("8")

    def colours() -> float:
        at = box(page, 0)
        seen = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=at))).convert("RGB"), int)
        return float((np.ptp(seen, axis=2) > 30).mean())

    without = colours()
    page.select_option("#labels", "1")
    until(page, "slicewise.sides[0].panel.nv.volumes.length === 2")
    settle(page)
    assert colours() > without + 0.1
    assert "belongs to another volume" in page.locator(".readout").nth(1).inner_text()
    page.select_option("#labels", "")
    until(page, "slicewise.sides[0].panel.nv.volumes.length === 1")


def test_last_choice_of_labels_wins_whichever_is_fetched_first(page):
    fresh(page)
    shown = """async asked => { const { panel, volume } = slicewise.sides[0], url = `volumes/${volume}/labels/1.nii`;
        await Promise.all(asked.map(each => panel.setLabels(each && url, { 1: "skull", 4: "brain stem" })));
        return panel.nv.volumes.length - 1; }"""
    assert page.evaluate(shown, [True, False]) == 0, "labels that come after they were put away stay away"
    assert page.evaluate(shown, [True, True]) == 1
    assert page.evaluate(shown, [False]) == 0


def test_picture_information_and_badge(page):
    fresh(page)
    assert page.locator(".badge:visible").count() == 2, "both say that they are synthetic"
    with page.expect_download() as waiting:
        page.click("#shot")
    saved = Image.open(waiting.value.path())
    assert waiting.value.suggested_filename.endswith(".png")
    assert saved.size[0] == round(box(page, 0)["width"])
    assert np.asarray(saved.convert("L")).std() > 20, "the picture, not black"
    page.click("#information")
    table = page.locator("#about-table").inner_text()
    bare = Volume.regular(FIRST, SPACING, Acquisition(synthetic=True))
    assert series_information(Entry("from NIfTI", lambda: bare), bare)["Synthetic data"] == "YES", "of NIfTI, too"
    assert "12 × 24 × 20" in table
    assert "5 × 6 × 7" in table
    assert "Synthetic data" in table
    page.click("#close-about")


def test_lines_cross_the_other_planes(page):
    fresh(page, "all")
    before = page.evaluate("slicewise.sides[0].panel.overlay.canvas.toDataURL()")
    page.click("#lines")
    settle(page)
    assert page.evaluate("slicewise.sides[0].panel.overlay.canvas.toDataURL()") != before
    page.click("#lines")


def test_axe_finds_nothing_on_the_viewer(page):
    fresh(page)
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        for opened in (None, "#help", "#information"):
            if opened:
                page.click(opened)
            accessible(page)
            page.keyboard.press("Escape")


def test_a_tablet_is_filled_with_the_pictures(page):
    fresh(page)
    page.set_viewport_size({"width": 820, "height": 1180})
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(box(page, i)["width"] > 780 and box(page, i)["height"] > 650 for i in (0, 1))
    page.set_viewport_size({"width": 1280, "height": 900})
