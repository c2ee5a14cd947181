"""How fast the viewer shows a large series: 512 x 512 x 160 voxels, DICOM on disk, in headless Chromium that draws on
the processor (SwiftShader), the slowest place to look from. Beside the time, the processor time of browser and
server: where other programs run, it says more.

    python bench/viewer.py
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from browser import browser
from conftest import toy_head
from slicewise.io.dicom_write import SyntheticOrigin, write_series
from slicewise.volume import Volume

SHAPE = (160, 512, 512)
# Waits until what was asked of the picture is on it: reading a pixel does, finish() does not.
DRAWN = """() => { const gl = slicewise.sides[0].panel.nv.gl;
  slicewise.sides[0].panel.draw();
  gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4)); }"""
SCROLL = """view => new Promise(done => {
  document.querySelectorAll('#views button').forEach(b => b.textContent === view && b.click());
  const panel = slicewise.sides[0].panel, gl = panel.nv.gl, pixel = new Uint8Array(4);
  panel.goToSlice(20);
  gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
  const began = performance.now(); let frames = 0;
  const frame = () => {
    if (frames === 30) return done(30000 / (performance.now() - began));
    panel.goToSlice(20 + frames++);
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame); })"""


def processor_s() -> float:
    """Processor time of all processes that this one has started and that still run, s."""
    parent, used = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parent[int(stat.parent.name)] = int(fields[1])
        used[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    mine = {os.getpid()}
    while more := {pid for pid, above in parent.items() if above in mine} - mine:
        mine |= more
    return sum(used[pid] for pid in mine - {os.getpid()})


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        head = toy_head(0, SHAPE[0], 128).repeat(4, axis=1).repeat(4, axis=2)
        noise = np.random.default_rng(0).normal(0, 4, head.shape)
        volume = Volume.regular(np.clip(head + noise, -1024, 3071).astype(np.int16), (1.0, 0.45, 0.45))
        write_series(volume, Path(folder), synthetic=SyntheticOrigin("toy", "1", seed=0), patient_id="BENCH")
        command = [sys.executable, "-m", "slicewise", "view", folder, "--no-browser"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        link = re.search(r"http://\S+", process.stdout.readline())
        assert link is not None
        try:
            with browser() as opened:
                page = opened.new_page(viewport={"width": 1280, "height": 900})
                page.set_default_timeout(300_000)
                for what in ("first picture, series read from disk", "first picture, series read before"):
                    began, before = time.monotonic(), processor_s()
                    page.goto(link[0])
                    page.wait_for_selector("body[data-ready]")
                    page.evaluate(DRAWN)
                    used = processor_s() - before
                    print(f"| {what} | {time.monotonic() - began:.1f} s | {used:.1f} s |", flush=True)
                for view in ("axial", "all"):
                    before = processor_s()
                    rate = page.evaluate(SCROLL, view)
                    used = (processor_s() - before) / 30
                    print(f"| scrolling, {view} | {rate:.1f} frames/s | {used:.3f} s a frame |", flush=True)
                for kind in ("average", "mip"):
                    began, before = time.monotonic(), processor_s()
                    page.select_option("#slab", kind)
                    page.evaluate(DRAWN)
                    used = processor_s() - before
                    print(f"| slab of 10 mm, {kind} | {time.monotonic() - began:.1f} s | {used:.1f} s |", flush=True)
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
