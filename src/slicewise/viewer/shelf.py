"""The volumes that a viewer offers: found by their headers at once, read when they are asked for."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from slicewise.data.store import open_store
from slicewise.errors import UserError
from slicewise.io.archive import find, read_volume
from slicewise.io.dicom import load
from slicewise.io.files import Skipped
from slicewise.io.folders import generated_series, is_store
from slicewise.io.nifti import load_nifti
from slicewise.viewer.display import Shown, curve, encode, show
from slicewise.viewer.labels import Labels, on_grid
from slicewise.volume import Volume

# Volumes kept ready for the browser: both sides, and the two before.
KEPT = 4


@dataclass(frozen=True)
class Entry:
    """A volume that can be shown: its title, how to read it, whether it is finished (calibrated, in a run), and a DICOM
    file of it, where it has one, whose header tells of the series.

    Unlike a `Member` of a set, which is measured, it may be one before calibration, and keeps the slices of a real scan
    that it continued from.
    """

    title: str
    read: Callable[[], Volume]
    finished: bool = True
    header: str = ""


def entries(paths: Iterable[Path]) -> tuple[list[Entry], list[Skipped]]:
    """What lies at the paths: prepared stores, `generate` runs (each volume with and without calibration), DICOM
    folders and NIfTI files, in that order of looking; and what was left out, with its reason.

    Raises `UserError` for a path that is not there, or where there is no volume at all.
    """
    found: list[Entry] = []
    skipped: list[Skipped] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        if is_store(path):
            store = open_store(path)
            found += [Entry(f"{path.name}: {r.id}", partial(store.volume, r)) for r in store.records]
        elif (made := generated_series(path)) is not None:
            found += _generated(made)
        else:
            archive = find([path])
            skipped += archive.skipped
            for series in archive.series:
                a = series.acquisition
                title = f"{_short(a.source)} {a.series_description}".strip()
                found.append(Entry(title, partial(lambda s: load(s).volume, series), header=series.slices[0].path))
            found += [Entry(_short(file), partial(lambda f: load_nifti(f).volume, file)) for file in archive.nifti]
    if not found:
        reasons = "; ".join(f"{entry.source}: {entry.reason}" for entry in skipped[:3])
        raise UserError(f"{', '.join(map(str, paths))}: no volume to show{': ' + reasons if reasons else ''}")
    return found, skipped


def _generated(series: Path) -> list[Entry]:
    """Every volume of a run of generate, before calibration first where it was kept."""
    found = []
    for folder in sorted(series.iterdir()):
        header = str(min(folder.iterdir(), default=""))
        raw = series.with_name("raw") / f"{folder.name}.npy"
        if raw.is_file():
            found.append(Entry(f"{folder.name} before calibration", partial(_uncalibrated, folder, raw), False, header))
        name = f"{folder.name} calibrated" if raw.is_file() else folder.name
        found.append(Entry(name, partial(lambda f: read_volume(f).volume, folder), header=header))
    return found


def _uncalibrated(folder: Path, raw: Path) -> Volume:
    return read_volume(folder).volume.with_hu(np.load(raw, allow_pickle=False))


def _short(source: str) -> str:
    return "/".join(Path(source).parts[-2:])


# What the page tells of a series, by keyword and as it names it; nothing that says who the patient is.
_TOLD = {
    "SeriesDescription": "Series", "Manufacturer": "Manufacturer", "ManufacturerModelName": "Model", "KVP": "kV",
    "ConvolutionKernel": "Kernel", "SliceThickness": "Slice thickness, mm", "ImageType": "Image type",
    "DerivationDescription": "Derivation", "SyntheticData": "Synthetic data",
}  # fmt: skip


def series_information(entry: Entry, volume: Volume) -> dict[str, str]:
    """What is known of a volume: its grid, whether it is synthetic, and what a DICOM header says of the series (PS3.3
    C.7.3, C.8.2.1)."""
    found = {"Voxels (z, y, x)": " × ".join(map(str, volume.hu.shape))}
    found["Spacing, mm"] = " × ".join(f"{s:.4g}" for s in volume.spacing)
    if volume.acquisition.synthetic:
        found["Synthetic data"] = "YES"
    if entry.header:
        header = pydicom.dcmread(entry.header, stop_before_pixels=True, specific_tags=list(_TOLD), force=True)
        found |= {name: str(header[keyword].value) for keyword, name in _TOLD.items() if header.get(keyword)}
    return found


class Shelf:
    """Entries, and the last few of them in the form that the browser takes. Safe to use from several threads."""

    def __init__(self, held: list[Entry], labels: Sequence[Labels] = ()) -> None:
        self.entries, self.labels = held, tuple(labels)
        self._ready: OrderedDict[int, Shown] = OrderedDict()
        self._curves: dict[int, dict[str, Any]] = {}
        self._lock, self._curve_lock = threading.Lock(), threading.Lock()

    def shown(self, index: int) -> Shown:
        """The volume at `index`, read now or kept from before. Raises `UserError` where it cannot be read."""
        with self._lock:
            if index not in self._ready:
                self._ready[index] = show(self.entries[index].read())
            self._ready.move_to_end(index)
            while len(self._ready) > KEPT:
                self._ready.popitem(last=False)
            return self._ready[index]

    def information(self, index: int) -> dict[str, str]:
        """What is known of the volume at `index`."""
        return series_information(self.entries[index], self.shown(index).volume)

    def labelled(self, index: int, labels: int) -> bytes:
        """Labels on the grid of the volume at `index`, as the browser takes them. Raises `UserError` where they belong
        to another."""
        return encode(on_grid(self.labels[labels], self.shown(index).volume))

    def curve(self, index: int) -> dict[str, Any]:
        """The curve of the volume at `index`; others can be shown meanwhile."""
        with self._curve_lock:
            if index not in self._curves:
                self._curves[index] = curve(self.shown(index))
            return self._curves[index]
