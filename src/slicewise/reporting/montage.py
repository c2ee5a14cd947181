"""Pictures of CT volumes: three planes in two windows, and sheets of every slice.

Radiological convention: the patient's right at image left, anterior and superior up, the face to the left in sagittal
sections; one scale for all planes, so that pixels are isotropic whatever the slice spacing.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from slicewise.hu import BRAIN, HEAD_HU, HU_MIN, WHOLE, Window
from slicewise.io.atomic import write_whole
from slicewise.metrics.tissue import brain_mask
from slicewise.volume import Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARGIN_MM = 6.0
_INK = "#e8e8e8"
_FAINT = "#9a9a9a"
_LETTERS = {"axial": tuple("RLAP"), "coronal": tuple("RLSI"), "sagittal": tuple("APSI")}


@dataclass(frozen=True)
class Section:
    """A planar section: `hu` float32 (rows, columns), with square pixels of `pixel_mm`, in display orientation."""

    plane: str
    hu: np.ndarray
    pixel_mm: float


def upright(volume: Volume) -> Volume:
    """The volume with x towards the patient's left and y towards posterior, by flips and at most one transposition."""
    hu, positions = volume.hu, volume.positions
    row, column, (dy, dx) = volume.row_axis, volume.column_axis, volume.pixel_spacing
    if abs(row[0]) < abs(column[0]):
        hu, row, column, (dy, dx) = hu.swapaxes(1, 2), column, row, (dx, dy)
    if row[0] < 0:
        positions = positions + row * dx * (hu.shape[2] - 1)
        hu, row = hu[:, :, ::-1], -row
    if column[1] < 0:
        positions = positions + column * dy * (hu.shape[1] - 1)
        hu, column = hu[:, ::-1], -column
    return Volume(hu, positions, row, column, (dy, dx), volume.acquisition)


def sections(volume: Volume) -> tuple[Section, Section, Section]:
    """Axial, coronal and sagittal sections through the middle of the brain (of the head, where no brain is found).

    Sampled at true positions, so a tilted gantry does not shear the head, nor uneven spacing stretch it; linear between
    slices and pixels. Cropped to the head with a margin of 6 mm.
    """
    v = upright(volume)
    head = _head(v.hu)
    brain = brain_mask(v.hu, v.spacing)
    # Too little brain (a bare skull base, noise) makes a poor middle.
    middle = ndimage.center_of_mass(brain if brain.sum() > 0.02 * head.sum() else head)
    z = round(middle[0])
    mm = min(v.pixel_spacing)
    ys = _extent(head.any(axis=(0, 2)), v.pixel_spacing[0])
    xs = _extent(head.any(axis=(0, 1)), v.pixel_spacing[1])
    axial = _sample(
        v.hu[z], np.arange(ys[0], ys[1], mm / v.pixel_spacing[0]), np.arange(xs[0], xs[1], mm / v.pixel_spacing[1])
    )
    coronal = _through_slices(v, head, z, mm, axis=1, index=middle[1])
    sagittal = _through_slices(v, head, z, mm, axis=2, index=middle[2])
    return Section("axial", axial, mm), Section("coronal", coronal, mm), Section("sagittal", sagittal, mm)


def montage(volumes: Sequence[Volume], titles: Sequence[str] = ()) -> "Figure":
    """Three planes in the whole range and the brain window. One volume gives two rows of three pictures; several give
    one row of six pictures each."""
    from matplotlib.figure import Figure

    assert volumes, "a montage needs a volume"
    shown = [sections(v) for v in volumes]
    side = max(max(s.hu.shape) * s.pixel_mm for row in shown for s in row)
    single = len(shown) == 1
    rows, columns = (2, 3) if single else (len(shown), 6)
    cell = 3.2 if single else 2.2  # inches
    header, gap = 0.42, 0.36
    height = header + rows * cell + (rows - 1) * (gap if single else 0.08) + 0.08
    figure = Figure(figsize=(columns * cell + 0.1, height), dpi=150, facecolor="black")
    for r, row in enumerate(shown):
        for i in range(6):
            window, section = (WHOLE, BRAIN)[i // 3], row[i % 3]
            line, column = (i // 3, i % 3) if single else (r, i)
            bottom = height - header - (line + 1) * cell - line * (gap if single else 0.08)
            box = (
                (0.05 + column * cell) / figure.get_figwidth(),
                bottom / height,
                cell / figure.get_figwidth(),
                cell / height,
            )
            axes = figure.add_axes((box[0], box[1], box[2] * 0.985, box[3] * 0.985))
            _draw(axes, section, window, side, letters=single or r == 0)
            if column % 3 == 0 and (single or r == 0):
                figure.text(
                    box[0] + 0.004, (bottom + cell + 0.09) / height, _window_text(window), color=_INK, fontsize=9
                )
        if titles and not single:
            figure.axes[6 * r].text(
                0.03, 0.03, titles[r], transform=figure.axes[6 * r].transAxes, color=_INK, fontsize=7
            )
    if titles and single:
        figure.text(0.99, (height - header + 0.09) / height, titles[0], color=_FAINT, fontsize=9, ha="right")
    return figure


def save_montage(volumes: Sequence[Volume], path: Path, titles: Sequence[str] = ()) -> None:
    """`montage` as a PNG file. Raises `UserError` where `path` cannot be written."""
    save_figure(montage(volumes, titles), path)


def slice_sheet(volume: Volume, path: Path, window: Window = BRAIN, title: str = "") -> None:
    """Every slice of a volume as a PNG file, superior first, cropped to the head.

    Raises `UserError` where `path` cannot be written.
    """
    from matplotlib.figure import Figure

    v = upright(volume)
    head = _head(v.hu)
    dy, dx = v.pixel_spacing
    y0, y1 = (int(np.clip(i, 0, head.shape[1])) for i in _extent(head.any(axis=(0, 2)), dy))
    x0, x1 = (int(np.clip(i, 0, head.shape[2])) for i in _extent(head.any(axis=(0, 1)), dx))
    n = len(v.hu)
    width, height = (x1 - x0) * dx, (y1 - y0) * dy
    columns = max(1, round(np.sqrt(n * height / width * 1.5)))
    rows = -(-n // columns)
    cell = 1.7
    cell_y = cell * height / width
    header = 0.36
    figure = Figure(figsize=(columns * cell, rows * cell_y + header), dpi=150, facecolor="black")
    full = rows * cell_y + header
    for i, hu in enumerate(v.hu):
        row, column = divmod(i, columns)
        box = (column / columns, (full - header - (row + 1) * cell_y) / full, 0.985 / columns, 0.985 * cell_y / full)
        axes = figure.add_axes(box)
        axes.imshow(
            hu[y0:y1, x0:x1], cmap="gray", vmin=window.lo, vmax=window.hi, aspect="auto", interpolation="antialiased"
        )
        axes.set_axis_off()
        axes.text(0.03, 0.97, str(i + 1), transform=axes.transAxes, color=_FAINT, fontsize=7, va="top")
    figure.text(0.01, 1 - 0.24 / full, _window_text(window), color=_INK, fontsize=9)
    figure.text(0.99, 1 - 0.24 / full, title, color=_FAINT, fontsize=9, ha="right")
    save_figure(figure, path)


def png(figure: "Figure", **options: Any) -> bytes:
    """A figure as PNG bytes; no metadata, so that equal pictures are equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", metadata={"Software": None}, **({"facecolor": figure.get_facecolor()} | options)
    )
    return buffer.getvalue()


def save_figure(figure: "Figure", path: Path) -> None:
    """A figure as a PNG file, whole or not at all. Raises `UserError` where `path` cannot be written."""
    write_whole(Path(path), png(figure))


def _head(hu: np.ndarray) -> np.ndarray:
    """The largest piece denser than -300 HU; all voxels where there is none."""
    labels, count = ndimage.label(hu > HEAD_HU)
    if count == 0:
        return np.ones(hu.shape, bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    found: np.ndarray = labels == sizes.argmax()
    return found


def _extent(occupied: Any, step: float, margin: float = _MARGIN_MM) -> tuple[float, float]:
    """First and past-the-last index of the occupied part of an axis, with a margin in mm."""
    where = np.flatnonzero(occupied)
    return where[0] - margin / step, where[-1] + 1 + margin / step


def _sample(image: np.ndarray, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Bilinear samples of a 2-D image at fractional row and column indices; air outside."""
    grid = np.meshgrid(ys, xs, indexing="ij")
    found: np.ndarray = ndimage.map_coordinates(image.astype(np.float32), grid, order=1, mode="constant", cval=HU_MIN)
    return found


def _through_slices(v: Volume, head: np.ndarray, z: int, mm: float, axis: int, index: float) -> np.ndarray:
    """A section across the slices: coronal (`axis` 1) or sagittal (2) at pixel `index` of slice `z`, superior first.

    Positions along the slice normal, the column axis and the row axis are Cartesian, so every slice is first sampled on
    a common line in space, then slices are joined linearly along the normal.
    """
    down = v.positions @ v.normal
    down = np.abs(down - down[0])
    offsets = {1: v.positions @ v.column_axis, 2: v.positions @ v.row_axis}
    steps = {1: v.pixel_spacing[0], 2: v.pixel_spacing[1]}
    along = 3 - axis
    fixed = offsets[axis][z] + index * steps[axis]
    occupied = [_extent(h.any(axis=axis - 1), steps[along]) for h in head if h.any()]
    starts = [offsets[along][k] for k, h in enumerate(head) if h.any()]
    lo = min(o + e[0] * steps[along] for o, e in zip(starts, occupied))
    hi = max(o + e[1] * steps[along] for o, e in zip(starts, occupied))
    line = np.arange(lo, hi, mm)
    lines = np.empty((len(v.hu), len(line)), np.float32)
    for k, hu in enumerate(v.hu):
        across = np.array([(fixed - offsets[axis][k]) / steps[axis]])
        place = (line - offsets[along][k]) / steps[along]
        lines[k] = _sample(hu, across, place)[0] if axis == 1 else _sample(hu, place, across)[:, 0]
    levels = np.arange(down[0] - v.spacing[0] / 2, down[-1] + v.spacing[0] / 2, mm)
    above = np.clip(np.searchsorted(down, levels, side="right") - 1, 0, max(0, len(down) - 2))
    below = np.minimum(above + 1, len(down) - 1)
    gap = np.maximum(down[below] - down[above], 1e-9)
    weight = np.clip((levels - down[above]) / gap, 0, 1)[:, None].astype(np.float32)
    found: np.ndarray = lines[above] * (1 - weight) + lines[below] * weight
    return found


def _draw(axes: Any, section: Section, window: Window, side_mm: float, letters: bool) -> None:
    """One picture, centred in a square of `side_mm`, with its orientation and a bar of 5 cm."""
    height, width = (n * section.pixel_mm for n in section.hu.shape)
    axes.imshow(
        section.hu,
        cmap="gray",
        vmin=window.lo,
        vmax=window.hi,
        extent=(-width / 2, width / 2, -height / 2, height / 2),
        interpolation="bicubic" if section.pixel_mm > 1.0 else "antialiased",
    )
    axes.set(xlim=(-side_mm / 2, side_mm / 2), ylim=(-side_mm / 2, side_mm / 2))
    axes.set_axis_off()
    if not letters:
        return
    left, right, top, bottom = _LETTERS[section.plane]
    style = {"color": _FAINT, "fontsize": 7, "transform": axes.transAxes}
    axes.text(0.015, 0.5, left, va="center", ha="left", **style)
    axes.text(0.985, 0.5, right, va="center", ha="right", **style)
    axes.text(0.5, 0.985, top, va="top", ha="center", **style)
    axes.text(0.5, 0.015, bottom, va="bottom", ha="center", **style)
    axes.plot([side_mm / 2 - 56, side_mm / 2 - 6], [-side_mm / 2 + 6] * 2, color=_FAINT, linewidth=1.2)
    axes.text(0.97 - 25 / side_mm, 0.045, "5 cm", va="bottom", ha="center", **style)


def _window_text(window: Window) -> str:
    name = {WHOLE: "Whole range", BRAIN: "Brain window"}.get(window, "Window")
    return f"{name}  {window.lo:g} … {window.hi:g} HU".replace("-", "\N{MINUS SIGN}")
