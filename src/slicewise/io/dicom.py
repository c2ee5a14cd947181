"""Read CT series from DICOM files into Volumes in Hounsfield units.

Uncompressed pixels are taken straight from where the scan of the headers found them; the rest goes through pydicom's
decoders. Each stored 16-bit pattern becomes HU through one table, in which sign, unused bits, padding, rescaling and
rounding are done.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from slicewise.errors import UserError
from slicewise.hu import HU_MAX, HU_MIN, Clipped
from slicewise.io.dicom_scan import Series, Slice, scan
from slicewise.io.geometry import (
    MAX_INTERPOLATED_STEPS,
    SAME_PLACE_MM,
    axial,
    find_gaps,
    interpolate_gaps,
    superior_first,
)
from slicewise.io.geometry import largest_part as longest_run
from slicewise.io.plausible import hu_doubt
from slicewise.io.provenance import EDITED, Instance, Provenance, Step, read_header
from slicewise.volume import Volume

# No noise of air reaches this far down; what a scanner stores below is padding outside its field of view.
PADDING_HU = -1200
# Padding stored as a value above this could be tissue: it counts only where it is joined to the image border.
SAFE_PADDING_HU = -900

# The fastest decoder of those that pydicom could take; the others are much slower to refuse a broken stream as well.
_DECODERS: dict[str, str] = {
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
}


@dataclass(frozen=True)
class Reading:
    """A volume as read, what was clipped to [-1024, 3071] HU, what was repaired on the way (clipping too), where it
    came from, and why its values may be no HU (see `slicewise.io.plausible`; "" where they are)."""

    volume: Volume
    clipped: Clipped = field(default_factory=Clipped)
    notes: tuple[str, ...] = ()
    source: Provenance = field(default_factory=Provenance)
    doubt: str = ""


@lru_cache(maxsize=256)
def hu_table(
    bits_stored: int, high_bit: int, signed: bool, padding: tuple[int, int] | None, slope: float, intercept: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU of every 16-bit pattern, int16 (65536,), what they are before clipping, float64 (65536,), and where clipping
    counts, bool (65536,).

    The pattern is cut to the bits stored (its sign extended), rescaled in float64, rounded half to even and clipped.
    Padding (a range of stored values, compared before any bit is cut) and everything below -1200 HU is air, -1024, and
    no clipping.
    """
    raw = np.arange(65536, dtype=np.uint16)
    at_top = raw << np.uint16(15 - high_bit)
    value = (at_top.view(np.int16) if signed else at_top).astype(np.int32) >> (16 - bits_stored)
    hu = np.rint(value * slope + intercept)
    air = hu < PADDING_HU
    if padding and _is_safe(padding, slope, intercept):
        air |= _is_padding(raw, signed, padding)
    clipped = ((hu < HU_MIN) | (hu > HU_MAX)) & ~air
    table = np.where(air, HU_MIN, np.clip(hu, HU_MIN, HU_MAX)).astype(np.int16)
    return table, hu, clipped


def _is_padding(raw: np.ndarray, signed: bool, padding: tuple[int, int]) -> np.ndarray:
    """Which 16-bit patterns lie in the padding range, read with the file's sign."""
    value = (raw.view(np.int16) if signed else raw).astype(np.int32)
    return (value >= padding[0]) & (value <= padding[1])


def _is_safe(padding: tuple[int, int], slope: float, intercept: float) -> bool:
    """Whether no tissue can be taken for padding."""
    return max(slope * p + intercept for p in padding) <= SAFE_PADDING_HU


def read_slice(s: Slice) -> tuple[np.ndarray, Clipped]:
    """The HU of one slice, int16 (Y, X), and what of it was clipped. Raises `UserError` naming the file."""
    raw, p = _stored(s), s.pixels
    table, whole, clipped = hu_table(p.bits_stored, p.high_bit, p.signed, p.padding, s.slope, s.intercept)
    hu = table.take(raw)
    if p.padding and not _is_safe(p.padding, s.slope, s.intercept):
        hu[_joined_to_border(_is_padding(raw, p.signed, p.padding))] = HU_MIN
    at_edge = hu.max() == HU_MAX or hu.min() == HU_MIN
    return hu, Clipped.of(whole.take(raw[clipped.take(raw)])) if at_edge else Clipped()


def _stored(s: Slice) -> np.ndarray:
    """The stored 16-bit patterns of one slice, uint16 (Y, X)."""
    shape = (s.pixels.rows, s.pixels.columns)
    try:
        if s.pixels.offset >= 0:
            count = shape[0] * shape[1]
            raw = np.fromfile(s.path, "<u2", count, offset=s.pixels.offset + 2 * count * s.frame)
            if s.pixels.big_endian:
                raw = raw.byteswap()
        else:
            source = pydicom.dcmread(s.path) if s.pixels.syntax == DeflatedExplicitVRLittleEndian else s.path
            decoder = _DECODERS.get(s.pixels.syntax, "")
            raw = pixel_array(source, index=s.frame, raw=True, decoding_plugin=decoder)
            raw = np.ascontiguousarray(raw).astype(np.int64).astype(np.uint16)
        return raw.reshape(shape)
    except Exception as error:  # decoders raise whatever they like on bad streams
        text = " ".join(str(error).split())[:160]
        raise UserError(f"{s.path}: pixels cannot be decoded, the file is truncated or damaged ({text})") from error


def _joined_to_border(mask: np.ndarray) -> np.ndarray:
    """The parts of a 2D mask that touch the border."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return np.isin(labels, edge[edge > 0])


# --- Series ---------------------------------------------------------------------------------------------------------


def load(
    series: Series,
    *,
    interpolate_missing: bool = False,
    largest_part: bool = False,
    keep_holes: bool = False,
    grid_mm: float = 0.0,
    min_slices: int = 2,
    threads: int = 0,
) -> Reading:
    """Read a series into a Volume: slices sorted along the normal, superior first; doubles dropped; holes refused.

    Positions are kept one a slice, so that gantry tilt and uneven spacing stay exact.

    Parameters
    ----------
    interpolate_missing : fill holes linearly where no more than two slices are missing, of the series or of a grid of
        slices `grid_mm` apart that it will be resampled to.
    largest_part : where a hole is not filled, take the longest run of slices without one.
    keep_holes : leave holes as they are, steps of several spacings (see `slicewise.fill`).
    min_slices : fewer are refused.
    threads : 0 takes as many as there are processors, eight at most.

    Raises `UserError` for what `scan` found wrong, too few slices, different images at one place, and missing slices.
    """
    if series.problem:
        raise UserError(series.problem)
    if len(series.slices) < min_slices:
        raise UserError(
            f"{series.name}: {_count(len(series.slices), 'slice')} where {min_slices} or more are needed; "
            "give a whole series"
        )
    orientation = np.array([s.orientation for s in series.slices]).mean(axis=0)
    row, column = _unit(orientation[:3]), orientation[3:]
    column = _unit(column - (column @ row) * row)
    if np.abs(np.r_[row, column] - series.slices[0].orientation).max() < 1e-6:
        row, column = np.array(series.slices[0].orientation[:3]), np.array(series.slices[0].orientation[3:])
    positions = np.array([s.position for s in series.slices])
    order = superior_first(positions, np.cross(row, column))
    slices, positions = [series.slices[i] for i in order], positions[order]
    hu = np.empty((len(slices), slices[0].pixels.rows, slices[0].pixels.columns), np.int16)

    def read_into(z: int) -> Clipped:
        hu[z], clipped = read_slice(slices[z])
        return clipped

    workers = threads or min(8, os.cpu_count() or 1)
    if workers == 1:
        clipped = [read_into(z) for z in range(len(slices))]
    else:
        with ThreadPoolExecutor(workers) as pool:
            clipped = list(pool.map(read_into, range(len(slices))))

    keep, doubles = _without_doubles(series, slices, hu, positions @ np.cross(row, column))
    if len(keep) < min_slices:
        raise UserError(
            f"{series.name}: {_count(len(keep), 'slice')} in {len(slices)} copies where {min_slices} or more are "
            "needed; give a whole series"
        )
    if len(keep) < len(slices):
        hu, positions, slices, clipped = hu[keep], positions[keep], *([a[z] for z in keep] for a in (slices, clipped))
    volume = Volume(hu, positions, row, column, slices[0].spacing, series.acquisition)
    changes: list[str] = []
    gaps = find_gaps(volume.slice_steps)
    if gaps and not keep_holes:
        volume, repaired = _repair_gaps(series, volume, gaps, interpolate_missing, largest_part, grid_mm)
        changes += repaired
    total = sum(clipped, Clipped())
    if total.voxels:
        changes.append(str(total))
    one_file = len({s.path for s in slices}) < len(slices)
    instances = (Instance(s.uid, s.frame + 1 if one_file else 0, s.position) for s in slices)
    source = read_header(slices[0].path, instances, (Step(text, EDITED) for text in changes))
    volume = _with_real_slices(axial(volume), slices)
    return Reading(volume, total, (*series.notes, *doubles, *changes), source, hu_doubt(volume.hu))


def _with_real_slices(volume: Volume, slices: Sequence[Slice]) -> Volume:
    """The volume with the places of the slices that say they are real among synthetic ones."""
    real = {tuple(np.round(s.position, 3)) for s in slices if s.synthetic == "NO"}
    if not real or not volume.acquisition.synthetic:
        return volume
    held = tuple(z for z, place in enumerate(volume.positions) if tuple(np.round(place, 3)) in real)
    return replace(volume, acquisition=replace(volume.acquisition, real_slices=held))


def read_series(
    source: Path | str | Sequence[Path | str], *, series_uid: str = "", interpolate_missing: bool = False
) -> Volume:
    """The one CT series in a folder or a list of files, as a Volume.

    Raises `UserError` where there is none (saying why the files were left out), where there are several and
    `series_uid` names none of them, and for everything that `load` refuses.
    """
    return load(one_series(source, series_uid), interpolate_missing=interpolate_missing).volume


def one_series(source: Path | str | Sequence[Path | str], series_uid: str = "") -> Series:
    """The one CT series in a folder or a list of files, its headers only; raises `UserError` as `read_series` does."""
    found = scan(source)
    name = str(source) if isinstance(source, str | Path) else f"{len(source)} files"
    series = [s for s in found.series if series_uid in ("", s.acquisition.series_uid)]
    if not series and found.skipped:
        first = next((entry for entry in found.skipped if entry.damaged), found.skipped[0])
        if first.source == name:
            raise UserError(f"{first.source}: {first.reason}")
        rest = f" and {len(found.skipped) - 1} more left out" if len(found.skipped) > 1 else ""
        raise UserError(f"{name}: no CT series here; {first.source}: {first.reason}{rest}")
    if not series:
        wanted = f" with UID {series_uid}" if series_uid else ""
        raise UserError(f"{name}: no DICOM series{wanted} here; give a folder that holds CT slices")
    if len(series) > 1:
        names = "; ".join(f"{s.acquisition.series_uid}: {_count(len(s.slices), 'slice')}" for s in series[:4])
        raise UserError(
            f"{name}: {len(series)} series where one was expected ({names}); give the folder of one of them"
        )
    return series[0]


def _without_doubles(
    series: Series, slices: list[Slice], hu: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Indices of the slices without those that repeat the one before, and a note of them."""
    keep = [0]
    for z in range(1, len(slices)):
        if abs(places[z] - places[keep[-1]]) > SAME_PLACE_MM:
            keep.append(z)
        elif not np.array_equal(hu[z], hu[keep[-1]]):
            raise UserError(
                f"{series.name}: two different images at one position ({slices[keep[-1]].path} and {slices[z].path}): "
                "two reconstructions or phases are mixed; sort them into separate folders and UIDs"
            )
    dropped = len(slices) - len(keep)
    return np.array(keep), [f"{_count(dropped, 'duplicate slice')} dropped"] if dropped else []


def _repair_gaps(
    series: Series, volume: Volume, gaps: list[tuple[int, int]], interpolate: bool, take_part: bool, grid_mm: float
) -> tuple[Volume, list[str]]:
    """The volume without holes, filled or cut at them, and what was done. Raises `UserError` with what can be done."""
    steps = volume.slice_steps
    wide = [(i, k) for i, k in gaps if steps[i] > MAX_INTERPOLATED_STEPS * max(steps[i] / k, grid_mm) + SAME_PLACE_MM]
    refused = wide if interpolate else gaps
    done = []
    if refused:
        missing = _count(sum(k - 1 for _, k in gaps), "slice")
        part = longest_run(volume, refused)
        top, bottom = (round(float(z), 2) + 0.0 for z in part.positions[[0, -1], 2])  # no "-0.00"
        rest = f"{_count(len(part.hu), 'slice')} from z = {top:.2f} to {bottom:.2f} mm"
        if not take_part:
            widest = max(k for _, k in gaps) - 1
            first = f"the first below z = {volume.positions[gaps[0][0], 2]:.2f} mm"
            fill = (
                f"; a gap of {widest} is too wide to interpolate" if wide else ", interpolate_missing=True fills them"
            )
            raise UserError(
                f"{series.name}: {missing} missing, {first}; restore the files{fill}, largest_part=True uses the {rest}"
            )
        done.append(f"the {rest}, of a scan with gaps")
        volume = part
        gaps = find_gaps(volume.slice_steps)
    if gaps:
        volume = interpolate_gaps(volume, gaps)
        done.append(f"{_count(sum(k - 1 for _, k in gaps), 'missing slice')} interpolated")
    return volume, done


def _unit(v: np.ndarray) -> np.ndarray:
    found: np.ndarray = v / np.linalg.norm(v)
    return found


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
