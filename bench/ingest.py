"""Slices a second from a DICOM series to voxels in HU: slicewise against SimpleITK, dicom2nifti and dcm2niix.

    python bench/ingest.py [--slices 200] [--repeats 3] [--series FOLDER]

One series (512 x 512, written by slicewise, or FOLDER) read by all in turn in one run; medians, in process except
dcm2niix, which is a program and writes a file, as dicom2nifti does. All must find the same HU, or it is said.
"""

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from slicewise.io.archive import read_volume
from slicewise.io.dicom_write import SyntheticOrigin, write_series
from slicewise.volume import Volume


def main() -> None:
    """Print a table a transfer syntax."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--series", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"given": arguments.series} if arguments.series else make(Path(scratch), arguments.slices)
        for syntax, folder in folders.items():
            compare(syntax, folder, Path(scratch), arguments.repeats)


def make(scratch: Path, slices: int) -> dict[str, Path]:
    """A head-sized ellipsoid with noise, uncompressed and in JPEG-LS."""
    rng = np.random.default_rng(0)
    axes = (np.linspace(-1.1, 1.1, slices), np.linspace(-1.2, 1.2, 512), np.linspace(-1.2, 1.2, 512))
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    head = np.where(z**2 + y**2 + x**2 < 1, 35.0, -1000.0).astype(np.float32)
    hu = np.rint(head + rng.normal(0, 5, head.shape).astype(np.float32)).clip(-1024, 3071).astype(np.int16)
    volume, origin = Volume.regular(hu, (1.0, 0.5, 0.5)), SyntheticOrigin("bench", "1", seed=0)
    for syntax in ("uncompressed", "jpeg-ls"):
        write_series(volume, scratch / syntax, synthetic=origin, patient_id="BENCH", syntax=syntax)
    return {syntax: scratch / syntax for syntax in ("uncompressed", "jpeg-ls")}


def compare(syntax: str, folder: Path, scratch: Path, repeats: int) -> None:
    """Time every reader on one series."""
    expected = read_volume(folder).volume.hu
    print(f"\n{syntax}: {len(expected)} slices of {expected.shape[1]} x {expected.shape[2]}, median of {repeats}")
    out = scratch / "out"
    for name, read in READERS.items():
        seconds, hu = [], None
        for _ in range(repeats):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            start = time.perf_counter()
            try:
                hu = read(folder, out)
            except Exception as error:  # what another reader cannot do is a result
                print(f"{name:12} cannot: {' '.join(str(error).split())[:80]}")
                break
            seconds.append(time.perf_counter() - start)
        else:
            same = hu is None or sorted_equal(hu, expected)
            print(f"{name:12} {len(expected) / median(seconds):8.0f} slices/s   {'same HU' if same else 'OTHER HU'}")


def sorted_equal(hu: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two stacks hold the same HU, whichever way their axes run."""
    flips = (hu[::a, ::b, ::c] for a in (1, -1) for b in (1, -1) for c in (1, -1))
    return hu.shape == expected.shape and any(np.array_equal(f, expected) for f in flips)


def with_slicewise(folder: Path, out: Path) -> np.ndarray:
    """`read_volume`."""
    return read_volume(folder).volume.hu


def with_simpleitk(folder: Path, out: Path) -> np.ndarray:
    """GDCM's series reader in ITK."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return SimpleITK.GetArrayFromImage(reader.Execute())


def with_dicom2nifti(folder: Path, out: Path) -> np.ndarray:
    """Written without compression, and read back outside of its time's greater part."""
    import dicom2nifti
    import nibabel

    dicom2nifti.dicom_series_to_nifti(str(folder), str(out / "x.nii"), reorient_nifti=False)
    return np.asarray(nibabel.load(out / "x.nii").dataobj).transpose(2, 1, 0)


def with_dcm2niix(folder: Path, out: Path) -> np.ndarray:
    """Written without compression."""
    import nibabel

    command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "x", "-o", str(out), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if not (out / "x.nii").is_file():
        raise RuntimeError(done.stdout.strip().splitlines()[-1])
    return np.asarray(nibabel.load(out / "x.nii").dataobj).transpose(2, 1, 0)


READERS: dict[str, Callable[[Path, Path], np.ndarray]] = {
    "slicewise": with_slicewise,
    "SimpleITK": with_simpleitk,
    "dicom2nifti": with_dicom2nifti,
    "dcm2niix": with_dcm2niix,
}

if __name__ == "__main__":
    main()
