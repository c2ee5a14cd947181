"""Axial slices of heads at their own pixels, unretouched: of one head in the brain and bone windows, of several in the
brain window alone.

    python bench/strip.py HEAD [HEAD ...] --out strip.png [--slices 8 14 19 25] [--pixels 400]
    python bench/strip.py --anomaly FOLDER --out strip.png [--slices 8 14 19 25] [--pixels 400]

HEAD is a DICOM folder or NIfTI file. Slices are numbered from the most superior, 0; `--pixels` is the side of the
square about the middle of the slice that is shown. FOLDER is one of `slicewise anomaly`: its scan and pseudo-normal
head in the brain window, and |z| up to 8.
"""

import argparse
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from slicewise.hu import BRAIN, Window
from slicewise.io.archive import read_volume
from slicewise.reporting.montage import upright

BONE = Window(-700.0, 1300.0)
Z = Window(0.0, 8.0)


def row(values: np.ndarray, window: Window, pixels: int) -> np.ndarray:
    """Slices (N, H, W) side by side, uint8."""
    top, left = ((side - min(pixels, side)) // 2 for side in values.shape[1:])
    shown = values[:, top : top + pixels, left : left + pixels]
    grey = np.clip((shown - window.lo) / (window.hi - window.lo), 0, 1)
    return np.hstack(list((255 * grey).astype(np.uint8)))


def heads_rows(heads: list[Path], slices: list[int], pixels: int) -> list[np.ndarray]:
    windows = (BRAIN, BONE) if len(heads) == 1 else (BRAIN,)
    shown = [upright(read_volume(head).volume).hu[slices] for head in heads]
    return [row(hu, window, pixels) for hu in shown for window in windows]


def anomaly_rows(folder: Path, slices: list[int], pixels: int) -> list[np.ndarray]:
    def held(name: str) -> np.ndarray:
        values = np.asarray(nibabel.load(folder / "nifti" / f"{name}.nii.gz").dataobj)
        return values.transpose(2, 1, 0)[slices]

    normal = held("pseudo-normal")
    scan = normal + held("residual")
    return [row(scan, BRAIN, pixels), row(normal, BRAIN, pixels), row(np.abs(held("z")), Z, pixels)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path, nargs="*")
    parser.add_argument("--anomaly", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slices", type=int, nargs="+", default=[8, 14, 19, 25])
    parser.add_argument("--pixels", type=int, default=400)
    a = parser.parse_args()
    if bool(a.heads) == bool(a.anomaly):
        parser.error("give heads or --anomaly")
    rows = anomaly_rows(a.anomaly, a.slices, a.pixels) if a.anomaly else heads_rows(a.heads, a.slices, a.pixels)
    Image.fromarray(np.vstack(rows)).save(a.out, optimize=True)
    print(a.out)


if __name__ == "__main__":
    main()
