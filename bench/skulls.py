"""Skulls of phantoms from real anatomy as the viewer renders them: face, side and base, bone window.

    python bench/skulls.py OUT.png --anatomy MAPS [--seeds 0 3 8] [--size 256]

Writes one picture, a row a head. Heads have slices of 1.25 mm, so that steps between slices do not show as ridges.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from browser import browser
from slicewise.data.phantom import PhantomSettings, make_phantom
from slicewise.viewer.app import viewer
from slicewise.viewer.shelf import Entry, Shelf
from test_viewer import served

VIEWS = {"face": (180, 10), "side": (90, 10), "base": (180, -80)}
# Bone opaque, all else clear: the window's lower end is the surface that is seen.
SHOW = """([azimuth, elevation]) => { const panel = slicewise.sides[0].panel, { nv } = panel;
  document.querySelectorAll('#views button').forEach(b => b.textContent === '3D' && b.click());
  panel.setWindow(250, 1400);
  nv.setRenderAzimuthElevation(azimuth, elevation);
  nv.drawScene();
  nv.gl.readPixels(0, 0, 1, 1, nv.gl.RGBA, nv.gl.UNSIGNED_BYTE, new Uint8Array(4)); }"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--anatomy", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 3, 8])
    parser.add_argument("--size", type=int, default=256)
    a = parser.parse_args()
    settings = PhantomSettings(size=a.size, slice_mm=1.25, noise_hu=2.0, anatomy=a.anatomy, split=(1.0, 0.0, 0.0))
    rows = []
    for seed in a.seeds:
        volume = make_phantom(seed, settings).volume
        app, path = viewer(Shelf([Entry(f"head {seed}", lambda volume=volume: volume)], []))
        with served(app) as base, browser() as opened:
            page = opened.new_page(viewport={"width": 900, "height": 900}, color_scheme="dark")
            page.set_default_timeout(300_000)
            page.goto(base + path)
            page.wait_for_selector("body[data-ready]")
            row = []
            for view in VIEWS.values():
                page.evaluate(SHOW, list(view))
                shot = page.screenshot(clip=page.locator(".stage canvas[role=img]").nth(0).bounding_box())
                picture = Image.open(io.BytesIO(shot)).convert("L")
                half, x, y = min(picture.size) // 2, picture.width // 2, picture.height // 2
                square = picture.crop((x - half, y - half, x + half, y + half))
                row.append(np.asarray(square.resize((420, 420))))
            rows.append(np.hstack(row))
    Image.fromarray(np.vstack(rows)).save(a.out)
    print(a.out)


if __name__ == "__main__":
    main()
