"""The viewer: what it sends is the array, what it shows is the array, and nobody else gets at it."""

import http.client
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from browser import Listener, browser, chromium
from conftest import TOY_SPACING, toy_head
from slicewise import cli
from slicewise.data.store import put_volume
from slicewise.errors import UserError
from slicewise.io.dicom_write import write_series
from slicewise.io.nifti import write_nifti
from slicewise.viewer.app import viewer
from slicewise.viewer.display import WINDOWS, curve, encode, evenly, show, slice_means, windows
from slicewise.viewer.server import address, host_names, is_loopback, listen, require_server
from slicewise.viewer.server import server as server_of
from slicewise.viewer.shelf import Entry, Shelf, entries
from slicewise.volume import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 3072, shape).astype(np.int16)


def decoded(data: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(data)


# What is sent --------------------------------------------------------------------------------------------------------


@given(
    shape=st.tuples(st.integers(2, 5), st.integers(2, 5), st.integers(2, 5)),
    axes=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_every_voxel_is_sent_with_its_hu_to_its_place(shape, axes, signs, seed):
    """However the slices lie in the patient: place and HU of every voxel, and axes in RAS order."""
    unit = np.eye(3)[list(axes)] * np.array(signs)[:, None]
    row, column, through = unit[0], unit[1], unit[2]
    positions = np.array([3.0, -7.0, 11.0]) + np.arange(shape[0])[:, None] * 5.0 * through
    volume = Volume(noise(shape, seed), positions, row, column, (0.5, 0.75))
    image = decoded(encode(volume))
    sent = np.asarray(image.dataobj)
    assert sent.dtype == np.int16
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    for z, y, x in np.ndindex(*shape):
        lps = positions[z] + x * 0.75 * row + y * 0.5 * column
        i, j, k = np.rint(np.linalg.inv(image.affine) @ LPS_TO_RAS @ [*lps, 1])[:3].astype(int)
        assert sent[i, j, k] == volume.hu[z, y, x]


def test_header_depends_on_the_grid_alone():
    first, second = (encode(Volume.regular(noise((6, 5, 4), seed), (5.0, 1.0, 1.0))) for seed in (1, 2))
    assert len(first) == len(second) == 352 + 2 * 6 * 5 * 4
    assert first[:352] == second[:352]
    assert first[352:] != second[352:]


def test_uneven_slices_are_shown_by_measured_ones():
    places = np.array([30.0, 25.0, 20.0, 12.0, 7.0])
    volume = Volume.regular(noise((5, 4, 4)), (5.0, 1.0, 1.0))
    uneven = Volume(volume.hu, np.c_[volume.positions[:, :2], places], volume.row_axis, volume.column_axis, (1.0, 1.0))
    with pytest.raises(UserError, match="uneven"):
        encode(uneven)
    even = evenly(uneven)
    assert even.is_even
    assert even.positions[0, 2] == 30.0
    assert even.positions[-1, 2] == 7.0
    for plane, z in zip(even.hu, even.positions[:, 2], strict=True):
        assert (plane == volume.hu[np.abs(places - z).argmin()]).all()
    assert "uneven" in show(uneven).about["note"]
    assert show(volume).about["note"] == ""


def test_slice_means_of_brain_and_of_heads_without_brain():
    hu = toy_head(1, slices=16, size=64)
    mean, of = slice_means(Volume.regular(hu, (5.0, 3.0, 3.0)))
    assert of == "brain"
    assert np.nanmax(np.abs(mean[np.isfinite(mean)] - 35)) < 3
    flat = np.full((4, 8, 8), -1000, np.int16)
    flat[1, 2:4, 2:4] = [[10, 20], [30, 40]]
    mean, of = slice_means(Volume.regular(flat, (5.0, 1.0, 1.0)))
    assert of == "head"
    assert mean[1] == 25
    assert np.isnan(mean[[0, 2, 3]]).all()


def test_what_the_page_is_told():
    volume = Volume.regular(toy_head(2), TOY_SPACING)
    about = show(volume).about
    assert about["shape"] == [8, 16, 16]
    assert about["spacing"] == [5.0, 12.0, 12.0]
    assert about["range"] == [int(volume.hu.min()), int(volume.hu.max())]
    drawn = curve(show(volume))
    assert len(drawn["values"]) == 8
    assert json.loads(json.dumps([about, drawn])) == [about, drawn]
    turned = Volume(
        np.ascontiguousarray(volume.hu.swapaxes(1, 2)),
        volume.positions,
        volume.column_axis,
        volume.row_axis,
        volume.pixel_spacing[::-1],
    )
    assert show(turned).about == about, "however it is stored"
    assert show(turned).nifti == show(volume).nifti, "however it is stored"
    moved = Volume.regular(volume.hu, TOY_SPACING, origin=(1.0, 2.0, 3.0))
    assert show(volume.with_hu(-volume.hu)).about["geometry"] == about["geometry"] != show(moved).about["geometry"]
    assert [w["name"] for w in windows()] == [name for name, _ in WINDOWS]
    assert len(WINDOWS) == 8


# What is found -------------------------------------------------------------------------------------------------------


def test_everything_at_the_paths_is_offered(tmp_path):
    volume = Volume.regular(toy_head(3), TOY_SPACING)
    put_volume(tmp_path / "store", volume, id="h0", patient="p", split="train", vertex_slice=0)
    write_series(volume, tmp_path / "series" / "a", synthetic=None, patient_id="A", series_description="Head")
    write_nifti(volume, tmp_path / "files" / "b.nii.gz")
    run = tmp_path / "run"
    write_series(volume, run / "dicom" / "volume-0000", synthetic=None, patient_id="S")
    (run / "raw").mkdir()
    np.save(run / "raw" / "volume-0000.npy", volume.hu + np.int16(7), allow_pickle=False)
    (run / "generate.json").write_text("{}")
    (tmp_path / "files" / "c.nii").write_bytes(b"no image")
    found, _ = entries([tmp_path / "store", tmp_path / "series", tmp_path / "files" / "b.nii.gz", run])
    assert [e.title for e in found] == [
        "store: h0", "series/a Head", "files/b.nii.gz", "volume-0000 before calibration", "volume-0000 calibrated",
    ]  # fmt: skip
    shift = [0, 0, 0, 7, 0]
    for entry, more in zip(found, shift, strict=True):
        assert (entry.read().hu == volume.hu + more).all()
    with pytest.raises(UserError, match="absent: no such file"):
        entries([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no volume to show"):
        entries([tmp_path / "empty"])


def test_shelf_keeps_a_few_and_reads_each_once():
    reads: list[int] = []

    def reader(i: int) -> Any:
        return lambda: reads.append(i) or Volume.regular(noise((2, 3, 4), i), (1.0, 1.0, 1.0))

    shelf = Shelf([Entry(str(i), reader(i)) for i in range(6)])
    threads = [threading.Thread(target=shelf.shown, args=(0,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == [0]
    for i in (1, 2, 3, 0, 4, 5, 0, 1):
        shelf.shown(i)
    assert reads == [0, 1, 2, 3, 4, 5, 1], "the ones used last are kept"


# Who gets at it ------------------------------------------------------------------------------------------------------


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of the app, served in a thread as the commands serve it."""
    bound = listen("127.0.0.1", 0)
    server = server_of(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield address(bound)
    finally:
        server.should_exit = True
        thread.join(20)


def get(base: str, path: str, host: str | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=30)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_server_answers_to_its_link_only(tmp_path):
    held = [Entry("one", lambda: Volume.regular(toy_head(4), TOY_SPACING)), Entry("bad", lambda: _fail())]
    app, path = viewer(Shelf(held))
    with served(app) as base:
        status, headers, body = get(base, path)
        assert status == 200
        assert b"<title>slicewise view" in body
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "no-referrer" == headers["referrer-policy"]
        assert "server" not in headers
        assert get(base, path, host="evil.example")[0] == 400, "a foreign name that points here"
        for foreign in ("/", "/volumes", "/wrong/", path + "assets/../../app.py", path + "volumes/7"):
            assert get(base, foreign)[0] == 404, foreign
        assert json.loads(get(base, path + "volumes")[2])["volumes"] == ["one", "bad"]
        assert get(base, path + "volumes/0.nii")[2] == encode(held[0].read())
        assert json.loads(get(base, path + "volumes/0/curve")[2]) == curve(show(held[0].read()))
        status, _, body = get(base, path + "volumes/1")
        assert status == 422
        assert json.loads(body) == {"error": "bad.nii: cut"}
        for name in ("niivue.umd.js", "niivue.LICENSE", "panel.js", "style.css", "view.css", "view.js"):
            assert get(base, f"{path}assets/{name}")[0] == 200
    assert viewer(Shelf(held))[1] != path, "every start has a link of its own"


def _fail() -> Volume:
    raise UserError("bad.nii: cut")


def test_loopback_and_ports():
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("192.168.0.4")
    assert not is_loopback("box")
    assert host_names("127.0.0.1")[0] == "127.0.0.1"
    assert host_names("0.0.0.0") == ["*"]
    bound = listen("127.0.0.1", 0)
    port = bound.getsockname()[1]
    with pytest.raises(UserError, match=f"port={port}: .*port=0"):
        listen("127.0.0.1", port)
    bound.close()
    for host, bad in (("127.0.0.1", 70000), ("no-such-host.invalid", 0)):
        with pytest.raises(UserError, match=f"host={host} port={bad}"):
            listen(host, bad)


def test_missing_server_packages_are_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"needs uvicorn, .*pip install 'slicewise\[clinic\]'"):
        require_server("view")
    with pytest.raises(SystemExit) as stop:
        cli.main(["view", str(tmp_path)])
    assert stop.value.code == 1
    assert "slicewise[clinic]" in capsys.readouterr().err


def test_view_command_serves_and_stops(tmp_path):
    write_nifti(Volume.regular(toy_head(5), TOY_SPACING), tmp_path / "head.nii")
    command = [sys.executable, "-m", "slicewise", "view", str(tmp_path), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    link = re.search(r"(http://127\.0\.0\.1:\d+)(/\S+/)", process.stdout.readline())
    assert link, "the line names the link"
    assert get(link[1], link[2])[0] == 200
    process.terminate()
    process.communicate(timeout=60)
    with pytest.raises(SystemExit) as stop:
        cli.main(["view", str(tmp_path / "absent")])
    assert stop.value.code == 1


# What is seen --------------------------------------------------------------------------------------------------------

LEFT = Volume.regular(noise((12, 24, 20), 5), (5.0, 6.0, 7.0))
# The same head, calibrated: the same geometry with other HU. And another head, of other geometry.
RIGHT = Volume.regular(noise((12, 24, 20), 6), (5.0, 6.0, 7.0))
OTHER = Volume.regular(toy_head(7, slices=20, size=24), (3.0, 8.0, 8.0))


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    if chromium() is None:
        pytest.fail("Chromium is missing; make tools (or apt-get install chromium) brings it")
    held = [Entry("left", lambda: LEFT), Entry("right", lambda: RIGHT), Entry("other", lambda: OTHER)]
    app, path = viewer(Shelf(held))
    with served(app) as base, browser() as opened:
        tab = opened.new_page(viewport={"width": 1024, "height": 700}, color_scheme="dark")
        tab.set_default_timeout(120_000)
        tab.heard = Listener(tab)
        tab.base = base
        tab.goto(base + path)
        tab.wait_for_selector("body[data-ready]")
        yield tab


def fresh(page: Any, view: str = "axial") -> None:
    """One view, both panels at the middle, linked, brain window, voxels as they are, no crosshair."""
    page.evaluate(
        """view => { const s = window.slicewise;
        document.querySelectorAll('#views button').forEach(b => b.textContent === view && b.click());
        if (!s.linked) document.getElementById('link').click();
        if (!s.nearest) document.getElementById('nearest').click();
        s.sides.forEach(side => { side.hit = null; side.panel.resetView(); side.panel.setCrosshair(false);
          side.panel.middle(); }); }""",
        view,
    )
    page.mouse.move(500, 5)
    settle(page)


def settle(page: Any) -> None:
    """Two frames drawn."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))")


def until(page: Any, truth: str) -> None:
    """Wait for a JavaScript expression (Playwright's own waiting needs eval, which the page forbids)."""
    deadline = time.monotonic() + 120
    while not page.evaluate(truth):
        assert time.monotonic() < deadline, truth
        settle(page)


def box(page: Any, side: int) -> dict[str, float]:
    return page.locator(".stage canvas[role=img]").nth(side).bounding_box()


def slices(page: Any) -> list[int]:
    return page.evaluate("window.slicewise.sides.map(s => s.panel.slice())")


def picture(page: Any, side: int) -> np.ndarray:
    """uint8 (rows, columns): what is on the canvas, without the letters over it."""
    page.evaluate("document.querySelectorAll('.overlay').forEach(o => { o.style.display = 'none'; })")
    shot = page.screenshot(clip={k: box(page, side)[k] for k in ("x", "y", "width", "height")})
    page.evaluate("document.querySelectorAll('.overlay').forEach(o => { o.style.display = ''; })")
    return np.asarray(Image.open(io.BytesIO(shot)).convert("L"))


def test_page_loads_without_errors_and_without_the_internet(page):
    assert page.heard.errors == []
    assert page.heard.requests
    assert all(u.startswith((page.base, "data:", "blob:")) for u in page.heard.requests)
    assert page.locator("#windows button").count() == 10
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "fits 1024 px"


def test_hu_shown_is_the_arrays_and_the_pixel_is_that_hu(page):
    """At points all over the picture: readout = array at the voxel named, and the pixel there is this HU in the
    window."""
    fresh(page)
    page.keyboard.press("8")  # whole range
    settle(page)
    checked = 0
    for side, volume in ((0, LEFT), (1, RIGHT)):
        at = box(page, side)
        seen = picture(page, side)
        rng = np.random.default_rng(side)
        for fx, fy in rng.uniform(0.05, 0.95, (14, 2)):
            x, y = at["x"] + fx * at["width"], at["y"] + fy * at["height"]
            page.mouse.move(x, y)
            text = page.locator(".readout").nth(side).inner_text().replace("\u2212", "-")
            found = re.search(r"(-?\d+) HU under the cursor.*?x (\d+) y (\d+) slice (\d+) of 12", text, re.S)
            if found is None:
                continue
            hu, i, j, k = map(int, found.groups())
            image = decoded(encode(volume))
            assert hu == np.asarray(image.dataobj)[i, j, 12 - k] == volume.hu[k - 1, 23 - j, 19 - i]
            around = seen[int(y - at["y"]) - 1 : int(y - at["y"]) + 2, int(x - at["x"]) - 1 : int(x - at["x"]) + 2]
            if np.ptp(around) == 0:  # not at the edge of a voxel
                assert abs(int(around[0, 0]) - 255 * (hu + 1024) / 4095) <= 2.5
                checked += 1
    assert checked >= 8


def test_window_keys_change_pixels_to_the_window(page):
    fresh(page)
    shares = {}
    for key, (lo, hi) in {"1": (-10, 70), "6": (-800, 2000), "8": (-1024, 3071)}.items():
        page.keyboard.press(key)
        settle(page)
        seen = picture(page, 0)
        inside = seen[seen.shape[0] // 3 : -seen.shape[0] // 3, seen.shape[1] // 3 : -seen.shape[1] // 3]
        shares[key] = (inside > 250).mean()
        plane = LEFT.hu[page.evaluate("window.slicewise.sides[0].panel.slice()")]
        assert abs(shares[key] - (plane > lo + 250 / 255 * (hi - lo)).mean()) < 0.15
        assert f"W {hi - lo} L {round((hi + lo) / 2)}" in page.locator("#window-now").inner_text()
    assert shares["1"] > shares["6"] + 0.15 > shares["8"] + 0.3
    page.keyboard.press("9")
    settle(page)
    limits = page.evaluate("[0, 1].map(i => [slicewise.sides[i].panel.nv.volumes[0].cal_min, slicewise.hi])")
    assert limits == [[int(LEFT.hu.min()), int(LEFT.hu.max())]] * 2, "from our metadata, and in both panels"


def test_right_drag_sets_window_and_level(page):
    fresh(page)
    page.keyboard.press("1")
    settle(page)
    at, before = box(page, 0), slices(page)
    x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down(button="right")
    page.mouse.move(x + 100, y, steps=3)
    page.mouse.up(button="right")
    settle(page)
    lo, hi = page.evaluate("[slicewise.lo, slicewise.hi]")
    assert abs((hi - lo) - 80 * np.exp(0.5)) <= 2
    assert abs((hi + lo) / 2 - 30) <= 1
    assert slices(page) == before, "and nothing else"
    page.keyboard.press("]")
    settle(page)
    assert page.evaluate("slicewise.hi - slicewise.lo") > hi - lo


def test_scrolling_is_linked_and_can_be_unlinked(page):
    fresh(page)
    start = slices(page)
    at = box(page, 0)
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    page.mouse.wheel(0, 100)
    settle(page)
    after = slices(page)
    assert after[0] == after[1]
    assert abs(after[0] - start[0]) == 1
    page.keyboard.press("ArrowUp")
    settle(page)
    assert slices(page) == [after[0] - 1, after[1] - 1], "up is towards the vertex"
    page.keyboard.press("Home")
    settle(page)
    assert slices(page) == [0, 0]
    page.keyboard.press("l")
    page.keyboard.press("End")
    settle(page)
    assert slices(page) == [11, 0]
    assert page.heard.errors == []


def test_another_head_is_linked_by_its_vertex_and_the_plot_leads_to_a_slice(page):
    fresh(page)
    page.locator(".panel select").nth(1).select_option("2")
    until(page, "slicewise.sides[1].panel.about && slicewise.sides[1].panel.about.shape[0] === 20")
    vertex = page.evaluate("slicewise.sides.map(s => s.panel.about.vertex)")
    page.evaluate("slicewise.sides[0].panel.goToSlice(6)")
    settle(page)
    until(page, "slicewise.sides.every(s => s.curve)")
    depth = (6 - vertex[0]) * 5.0
    assert slices(page) == [6, round(depth / 3.0) + vertex[1]]
    page.evaluate("document.querySelectorAll('.panel select')[0].dispatchEvent(new Event('focus'))")
    plot = page.locator("#curve").bounding_box()
    page.mouse.click(plot["x"] + plot["width"] - 13, plot["y"] + 60)
    settle(page)
    assert slices(page)[1] == 19 or slices(page)[0] == 11, "the end of the curve is the last slice"
    assert page.locator("#curve polyline").count() >= 2
    page.locator(".panel select").nth(1).select_option("1")
    until(page, "slicewise.sides[1].panel.about && slicewise.sides[1].panel.about.shape[0] === 12")


def test_everything_is_reached_by_keyboard_and_fits_a_tablet(page):
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    view = page.evaluate("slicewise.view")
    page.keyboard.press("v")
    assert page.evaluate("slicewise.view") != view
    page.evaluate("document.activeElement.blur()")
    seen = set()
    for _ in range(70):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"two", "link", "swap", "help", "SELECT", "CANVAS", "curve", "theme"} <= seen
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("d")
    assert page.evaluate(background) != dark
    page.set_viewport_size({"width": 768, "height": 1024})
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(box(page, i)["width"] > 300 and box(page, i)["height"] > 300 for i in (0, 1))
    page.set_viewport_size({"width": 1024, "height": 700})
    settle(page)
    assert page.heard.errors == []
