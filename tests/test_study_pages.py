"""A reader in a real browser: consent, practice, rating by keyboard, an interrupted network, the end."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import Listener, accessible, browser, chromium
from slicewise.study.app import Study, open_study, study_app
from slicewise.study.create import create, read_links
from slicewise.study.design import StudySettings
from slicewise.study.report import write_report
from test_study import folders
from test_viewer import served, settle, until

DESIGN = StudySettings(readers=1, cases="2+2", repeats="0+0", practice="1+0", structures=("Skull", "Ventricles"))


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Study, Any]]:
    """The study, and a page at the reader's link."""
    if chromium() is None:
        pytest.fail("Chromium is missing; make tools (or apt-get install chromium) brings it")
    tmp: Path = tmp_path_factory.mktemp("pages")
    create(tmp / "study", *folders(tmp, 3, 2), DESIGN, allow_leak=True)
    study = open_study(tmp / "study")
    with served(study_app(study)) as base, browser() as opened:
        page = opened.new_page(viewport={"width": 1024, "height": 768}, color_scheme="light")
        page.set_default_timeout(120_000)
        page.heard, page.base = Listener(page), base
        page.goto(f"{base}/r/{read_links(tmp / 'study')[0][1]}/")
        yield study, page
    study.answers.close()


def at(page: Any, place: int) -> None:
    """Wait until the page shows a place, its volume drawn."""
    until(page, f"document.body.dataset.place === '{place}'")
    settle(page)


def saved(page: Any) -> None:
    until(page, "document.getElementById('saved').textContent === 'saved'")


def picture(page: Any) -> np.ndarray:
    box = page.locator("#stage").bounding_box()
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=box))).convert("L"), float)


def test_a_reader_from_consent_to_the_end(reading):
    study, page = reading
    # Consent.
    at(page, -1)
    begin = page.locator("#begin")
    accessible(page)
    assert begin.is_disabled()
    assert "well preserved" in page.locator("#intro").inner_text()
    page.check("#agree")
    begin.click()
    # Practice, by keyboard alone.
    at(page, 0)
    assert "Practice case 1 of 1" in page.locator("#where").inner_text()
    assert page.locator("#practice").is_visible()
    bone = picture(page)
    page.keyboard.press("6")
    settle(page)
    assert np.abs(picture(page) - bone).mean() > 3, "keys set the window while the picture has the focus"
    assert page.locator("#next").is_disabled()
    page.keyboard.press("r")
    for key in ("3", "2", "1", "2"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.id") == "comment"
    page.keyboard.type("soft 123")
    saved(page)
    until(page, "!document.getElementById('next').disabled")
    given = study.answers.latest("Reader 1", 0)
    assert (given["s0"], given["s1"], given["guess"], given["confidence"]) == ("3", "2", "real", "2")
    # Ctrl+Enter while the last answer is on its way waits for it; then practice says what it was.
    page.evaluate("""() => { const send = window.fetch; let slow = true;
      window.fetch = async (...given) => { if (slow) { slow = false; await new Promise(r => setTimeout(r, 700)); }
        return send(...given); }; }""")
    page.keyboard.press("Escape")
    page.keyboard.press("r")
    page.locator("fieldset >> nth=3").locator("label >> nth=2").click()
    page.keyboard.press("Control+Enter")
    until(page, "document.getElementById('feedback').open")
    assert page.locator("#feedback-text").inner_text() == "Right: this volume is real; you said real."
    assert study.answers.latest("Reader 1", 0)["confidence"] == "3"
    accessible(page)
    page.click("#understood")
    at(page, 1)
    assert study.answers.latest("Reader 1", 0)["comment"] == "soft 123"
    assert page.locator("#back").is_hidden()
    accessible(page)
    # A pause hides the case and stops the clock.
    page.click("#pause")
    assert page.locator("#paused").is_visible()
    accessible(page)
    counted = page.evaluate("fetch('state').then(() => document.getElementById('paused').open)")
    page.click("#resume")
    assert counted
    assert page.locator("#paused").is_hidden()
    # The tools of the viewer.
    page.select_option("#slab", "average")
    page.click("#tool-distance")
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.7 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.7 * box["height"], steps=3)
    page.mouse.up()
    settle(page)
    read = page.locator("#readout").inner_text()
    assert "slab of" in read
    assert " mm" in read.split("slab of")[1]
    assert "Case 1 of 4" in page.locator("#where").inner_text()
    assert not page.locator("#practice").is_visible()
    assert page.locator("fieldset input:checked").count() == 0
    assert page.input_value("#comment") == ""
    # Some answers, then the page is loaded anew: they are there.
    page.locator("fieldset >> nth=0").locator("label >> nth=1").click()
    page.locator("fieldset >> nth=1").locator("label >> nth=3").click()
    saved(page)
    page.reload()
    at(page, 1)
    chosen = page.evaluate("[...document.querySelectorAll('fieldset input:checked')].map(i => i.value)")
    assert chosen == ["2", "0"]
    # The network fails, and comes back.
    page.route("**/answers", lambda route: route.abort())
    page.locator("fieldset >> nth=2").locator("label >> nth=1").click()
    until(page, "document.getElementById('saved').classList.contains('wrong')")
    assert "not saved" in page.locator("#saved").inner_text()
    assert "guess" not in study.answers.latest("Reader 1", 1)
    page.locator("fieldset >> nth=3").locator("label >> nth=0").click()
    assert page.locator("#next").is_disabled(), "nothing is left behind"
    page.unroute("**/answers")
    saved(page)
    assert study.answers.latest("Reader 1", 1)["guess"] == "synthetic"
    page.heard.errors.clear()  # the browser told of the aborted requests
    # A tablet; then on to the end.
    page.set_viewport_size({"width": 768, "height": 1024})
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1024, "height": 768})
    page.click("#next")
    for place in (2, 3, 4):
        at(page, place)
        for i, option in enumerate((2, 2, 0, 1)):
            page.locator(f"fieldset >> nth={i}").locator(f"label >> nth={option}").click()
        until(page, "!document.getElementById('next').disabled")
        assert page.locator("#next").inner_text() == ("Finish" if place == 4 else "Next case")
        page.click("#next")
        if place == 2:  # back once, and on again
            at(page, 3)
            page.click("#back")
            at(page, 2)
            assert page.locator("#back").is_hidden()
            assert page.locator("fieldset input:checked").count() == 4
            page.locator("fieldset >> nth=0").locator("label >> nth=0").click()
            until(page, "!document.getElementById('next').disabled")
            page.click("#next")
            at(page, 3)
            assert study.answers.latest("Reader 1", 2)["s0"] == "1"
    at(page, 5)
    assert page.locator("#end").is_visible()
    assert study.place("Reader 1") == 5
    assert all(0 < seconds < 600 for place, seconds in study.answers.seconds("Reader 1").items() if place >= 0)
    assert page.heard.errors == []
    assert all(url.startswith((page.base, "data:", "blob:")) for url in page.heard.requests)
    accessible(page)
    held = " ".join(page.heard.requests)
    assert not any(case in held for case in study.sequence("Reader 1")), "no address names a case"
    # Closed, and reported.
    study.answers.close_study()
    page.reload()
    until(page, "!document.getElementById('closed').hidden")
    accessible(page)
    write_report(study.folder, study.folder / "report")
    page.goto((study.folder / "report" / "report.html").as_uri())
    accessible(page)
