"""Axial slices of heads at their own pixels, unretouched: of one head in the brain and bone windows, of several in the
brain window alone.

    python bench/strip.py HEAD [HEAD ...] --out strip.png [--slices 8 14 19 25] [--pixels 400]

HEAD is a DICOM folder or NIfTI file. Slices are numbered from the most superior, 0; `--pixels` is the side of the
square about the middle of the slice that is shown. With several heads only the brain window, to compare them.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from slicewise.hu import BRAIN, Window
from slicewise.io.archive import read_volume
from slicewise.reporting.montage import upright

BONE = Window(-700.0, 1300.0)


def row(hu: np.ndarray, window: Window, pixels: int) -> np.ndarray:
    """Slices (N, H, W) side by side, uint8."""
    top, left = ((side - min(pixels, side)) // 2 for side in hu.shape[1:])
    shown = hu[:, top : top + pixels, left : left + pixels]
    grey = np.clip((shown - window.lo) / (window.hi - window.lo), 0, 1)
    return np.hstack(list((255 * grey).astype(np.uint8)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slices", type=int, nargs="+", default=[8, 14, 19, 25])
    parser.add_argument("--pixels", type=int, default=400)
    a = parser.parse_args()
    rows = []
    for head in a.heads:
        hu = upright(read_volume(head).volume).hu[a.slices]
        windows = (BRAIN, BONE) if len(a.heads) == 1 else (BRAIN,)
        rows += [row(hu, window, a.pixels) for window in windows]
    Image.fromarray(np.vstack(rows)).save(a.out, optimize=True)
    print(a.out)


if __name__ == "__main__":
    main()
