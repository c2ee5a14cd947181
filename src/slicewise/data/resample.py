"""From any CT geometry to an even axial grid centred on the head, and the head out of its table and holder.

Tilted gantries, oblique and uneven slices are undone by asking, for every point of the target, where in the source it
lies: between which slices along their normal, and where in their plane.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from slicewise.errors import UserError
from slicewise.hu import HEAD_HU, HU_MIN, round_hu
from slicewise.volume import Volume

# Width of the Gaussian prefilter in target pixels: 5 % left at the sampling frequency, 45 % at half of it.
PREFILTER = 0.4
# What is cut off the body by the opening that frees it of the holder comes back where it is as small as an ear.
PART_CM3 = 15.0
PART_HEIGHT_MM = 90.0
# Length of a head, and slices so far apart that interpolating between them shows.
HEAD_LENGTH_MM = 180.0
THICK_MM = 2.5


@dataclass(frozen=True)
class Grid:
    """The working grid.

    Attributes
    ----------
    size : pixels a side.
    fov_mm : field of view a side, mm.
    slice_mm : distance between slices, mm.
    crop_air_above : begin with the first slice that shows the head.
    min_coverage : least share of the head that the scan must cover in a slice; slices at the ends of a tilted scan,
        where it covers less, are omitted.
    remove_table : set everything outside the head (table, head holder) to air.
    keep_tilt : lay the slices in the gantry's plane instead of upright (see `in_gantry_frame`).
    """

    size: int = 128
    fov_mm: float = 240.0
    slice_mm: float = 5.0
    crop_air_above: bool = True
    min_coverage: float = 0.85
    remove_table: bool = False
    keep_tilt: bool = False

    @staticmethod
    def of(size: int, spacing_mm: tuple[float, float, float]) -> "Grid":
        """The grid of so many square pixels with a spacing (z, y, x)."""
        return Grid(size, spacing_mm[1] * size, spacing_mm[0])

    def holds(self, volume: Volume) -> bool:
        """Whether a volume has such pixels and even, axial slices already, wherever it lies."""
        pixel = self.fov_mm / self.size
        return bool(
            volume.hu.shape[1:] == (self.size, self.size)
            and np.allclose(volume.spacing, (self.slice_mm, pixel, pixel), atol=0.005)
            and volume.is_even
            and np.allclose([volume.row_axis, volume.column_axis], np.eye(3)[:2], atol=1e-3)
        )


def resample_volume(volume: Volume, grid: Grid | None = None) -> Volume:
    """The volume on the working grid: axial, even, rows to the patient's left, centred in-plane on the head.

    Where pixels or slices grow, they are averages (Gaussian in-plane, box along z), so that nothing aliases; in between
    interpolation is linear, in float32; outside the scan there is air (-1024 HU). The slices keep the phase of the
    topmost slice with head, so that an axial series with the right spacing is not blurred along z.

    Raises `UserError` where there is no head (nothing above -300 HU) or no slice is covered enough.
    """
    grid = grid or Grid()
    volume = in_gantry_frame(volume) if grid.keep_tilt else volume
    centre, top, outline = _locate(volume, grid)
    pixel = grid.fov_mm / grid.size
    offsets = (np.arange(grid.size) - (grid.size - 1) / 2) * pixel
    x, y = np.meshgrid(centre[0] + offsets, centre[1] + offsets)
    filtered = _prefiltered(volume, pixel)
    highest, lowest = _z_range(volume, x[outline], y[outline])
    above = int((highest - top) / grid.slice_mm + 1e-6)
    places = top + grid.slice_mm * np.arange(above, -int((top - lowest) / grid.slice_mm + 1e-6) - 1, -1)
    planes = [_plane(volume, filtered, x, y, z, grid.slice_mm) for z in places]
    first, last = _covered_range(planes, outline, grid.min_coverage)
    if first == last:
        raise UserError(
            f"{volume.acquisition.source}: no axial slice covers {grid.min_coverage:.0%} of the head; lower the "
            "minimum coverage or leave the scan out"
        )
    resampled = Volume.regular(
        round_hu(np.stack([values for values, _ in planes[first:last]])),
        (grid.slice_mm, pixel, pixel),
        # Upright slices of another thickness, none of them one of the source's.
        replace(volume.acquisition, real_slices=(), slice_thickness_mm=None, gantry_tilt_deg=None),
        (float(x[0, 0]), float(y[0, 0]), float(places[first])),
    )
    if grid.remove_table:
        resampled = remove_table(resampled)
    return crop_above(resampled) if grid.crop_air_above else resampled


def in_gantry_frame(volume: Volume) -> Volume:
    """The volume turned so that its slices are axial: the gantry's plane becomes the grid's, and thick or uneven slices
    of a tilted scan are not interpolated across. The head is then as tilted as the gantry was."""
    x = volume.row_axis * (1.0 if volume.row_axis[0] >= 0 else -1.0)
    y = volume.column_axis * (1.0 if volume.column_axis[1] >= 0 else -1.0)
    turn = np.stack([x, y, np.cross(x, y)])
    row, column = np.rint(turn @ volume.row_axis), np.rint(turn @ volume.column_axis)
    return replace(volume, positions=volume.positions @ turn.T, row_axis=row, column_axis=column)


def shear_note(volume: Volume) -> str:
    """What resampling to upright slices does to a tilted scan with thick slices, "" where it does little: the slices'
    planes rise over the length of a head by more than half the distance between them."""
    rise = HEAD_LENGTH_MM * float(np.hypot(*volume.normal[:2]))
    step = float(volume.slice_steps.max()) if len(volume.hu) > 1 else 0.0
    if rise <= step / 2 or step < THICK_MM:
        return ""
    tilt = np.degrees(np.arccos(min(1.0, abs(volume.normal[2]))))
    return (
        f"slices up to {step:.1f} mm apart are tilted by {tilt:.1f} degrees; upright ones are interpolated across "
        f"{rise / step:.1f} of them, which makes the skull vault look beaded; Grid.keep_tilt=True keeps the gantry's "
        "plane"
    )


def crop_above(volume: Volume) -> Volume:
    """The volume from the first slice on that shows the head: 1 cm² of it or more (see `body_mask`).

    Not the share of a slice that `hu.shows_head` asks for: here the holder is told from the head, so less of the head
    will do, and a scan may have any field of view.
    """
    area_mm2 = body_mask(volume).sum(axis=(1, 2)) * volume.pixel_spacing[0] * volume.pixel_spacing[1]
    first = int(np.argmax(area_mm2 >= 100.0))
    return Volume(
        volume.hu[first:],
        volume.positions[first:],
        volume.row_axis,
        volume.column_axis,
        volume.pixel_spacing,
        volume.acquisition,
    )


def remove_table(volume: Volume) -> Volume:
    """The volume with everything outside the body set to air."""
    return volume.with_hu(np.where(body_mask(volume, margin_mm=2.0), volume.hu, np.int16(HU_MIN)))


def body_mask(volume: Volume, margin_mm: float = 0.0) -> np.ndarray:
    """The body without table and head holder, bool (Z, Y, X): filled slice by slice, and grown by `margin_mm`.

    The largest connected part above -300 HU, after an opening of 3 mm has cut it from the thin shells it rests on. What
    the opening took from the body itself (ears, nose, skin folds) comes back where it touches the body and is no larger
    than an ear; shells are longer.
    """
    dz, dy, dx = volume.spacing
    tissue = volume.hu > HEAD_HU
    opened = ndimage.binary_opening(tissue, disc(3.0, dy, dx)[None])
    labels, count = ndimage.label(opened)
    if count == 0:
        return tissue
    body = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    rest, count = ndimage.label(tissue & ~body)
    if count:
        touching = np.unique(rest[ndimage.binary_dilation(body) & (rest > 0)])
        sizes = np.bincount(rest.ravel()) * dz * dy * dx / 1000.0
        boxes = ndimage.find_objects(rest)
        small = [
            part
            for part in touching
            if sizes[part] <= PART_CM3 and (boxes[part - 1][0].stop - boxes[part - 1][0].start) * dz <= PART_HEIGHT_MM
        ]
        body |= np.isin(rest, small)
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in body])
    return ndimage.binary_dilation(filled, disc(margin_mm, dy, dx)[None]) if margin_mm else filled


def disc(radius_mm: float, dy: float, dx: float) -> np.ndarray:
    """A disc in the axial plane, at least a cross of one pixel."""
    ry, rx = max(1, round(radius_mm / dy)), max(1, round(radius_mm / dx))
    y, x = np.mgrid[-ry : ry + 1, -rx : rx + 1]
    found: np.ndarray = (y / ry) ** 2 + (x / rx) ** 2 <= 1.0
    return found


def _locate(volume: Volume, grid: Grid) -> tuple[np.ndarray, float, np.ndarray]:
    """Where the head is: its centre (x, y) in mm, the z of the topmost source slice plane with head there, and its
    outline seen from above on the target's pixels, bool (size, size)."""
    step_y = max(1, round(2.0 / volume.pixel_spacing[0]))
    step_x = max(1, round(2.0 / volume.pixel_spacing[1]))
    coarse = Volume(
        np.ascontiguousarray(volume.hu[:, ::step_y, ::step_x]),
        volume.positions,
        volume.row_axis,
        volume.column_axis,
        (volume.pixel_spacing[0] * step_y, volume.pixel_spacing[1] * step_x),
        volume.acquisition,
    )
    z, y, x = np.nonzero(body_mask(coarse))
    if len(z) == 0:
        raise UserError(f"{volume.acquisition.source}: no head in it: nothing is above {HEAD_HU} HU")
    points = (
        coarse.positions[z]
        + y[:, None] * coarse.pixel_spacing[0] * coarse.column_axis
        + x[:, None] * coarse.pixel_spacing[1] * coarse.row_axis
    )
    centre = points[:, :2].mean(axis=0)
    pixel = grid.fov_mm / grid.size
    index = np.floor((points[:, :2] - centre) / pixel + grid.size / 2).astype(int)
    inside = ((index >= 0) & (index < grid.size)).all(axis=1)
    outline = np.zeros((grid.size, grid.size), bool)
    outline[index[inside, 1], index[inside, 0]] = True
    outline = ndimage.binary_fill_holes(ndimage.binary_closing(outline, iterations=2)) | outline
    planes = _slice_z(volume, centre)
    vertex = float(points[:, 2].max())
    return centre, float(planes[np.argmin(np.abs(planes - vertex))]), outline


def _slice_z(volume: Volume, xy: np.ndarray) -> np.ndarray:
    """The z at which every slice's plane passes the vertical line at (x, y), mm, float64 (Z,)."""
    n = volume.normal
    found: np.ndarray = (volume.positions @ n - xy[0] * n[0] - xy[1] * n[1]) / n[2]
    return found


def _z_range(volume: Volume, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Highest and lowest z of the scan over some places (x, y), mm."""
    corners = [(x.min(), y.min()), (x.min(), y.max()), (x.max(), y.min()), (x.max(), y.max())]
    z = np.array([_slice_z(volume, np.array(corner))[[0, -1]] for corner in corners])
    return float(z.max()), float(z.min())


def _covered_range(planes: list[tuple[np.ndarray, np.ndarray]], outline: np.ndarray, least: float) -> tuple[int, int]:
    """The planes [first, last) in which the scan covers the head, grown from the one it covers best.

    Where the gantry was tilted, the ends of the scan are cut slantwise, and half a head is no slice to learn from. What
    the scan does not see is taken to be head as far as the planes before it were.
    """
    shares = [np.count_nonzero(covered & outline) / np.count_nonzero(outline) for _, covered in planes]
    best = len(planes) // 2 if max(shares) == min(shares) else int(np.argmax(shares))
    if shares[best] < least:
        return 0, 0

    def reach(step: int) -> int:
        k, head = best, outline
        while 0 <= k + step < len(planes):
            values, covered = planes[k + step]
            seen = ndimage.binary_fill_holes(values > HEAD_HU) & outline & covered
            head = seen | (head & ~covered)
            if np.count_nonzero(seen) < least * np.count_nonzero(head):
                break
            k += step
        return k

    return reach(-1), reach(1) + 1


def _prefiltered(volume: Volume, pixel: float) -> np.ndarray:
    """Voxels in float32, smoothed in-plane as far as the target's pixels are larger than the source's."""
    ratios = [pixel / spacing for spacing in volume.pixel_spacing]
    sigmas = [PREFILTER * np.sqrt(max(r * r - 1.0, 0.0)) for r in ratios]
    out = np.empty(volume.hu.shape, np.float32)
    for z, plane in enumerate(volume.hu):
        out[z] = plane
        if max(sigmas) > 0.05:
            ndimage.gaussian_filter(out[z], sigmas, output=out[z], mode="nearest", truncate=3.0)
    return out


def _plane(
    volume: Volume, filtered: np.ndarray, x: np.ndarray, y: np.ndarray, z: float, slice_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """One axial slice of the target, float32 HU, and which of its points the scan covers, bool.

    Where the source's slices are thinner than the target's, it is the mean over a box that makes up the difference.
    """
    planes = _slice_z(volume, np.array([x.mean(), y.mean()]))
    middle = int(np.clip(np.searchsorted(-planes, -z), 1, len(planes) - 1))
    step = float(planes[middle - 1] - planes[middle])
    box = np.sqrt(max(slice_mm**2 - step**2, 0.0))
    count = 1 if box < 0.1 * slice_mm else int(np.ceil(box / step)) + 1
    total, covered = np.zeros(x.shape, np.float32), np.ones(x.shape, bool)
    for j in range(count):
        values, inside = _sample(volume, filtered, x, y, z + box * ((j + 0.5) / count - 0.5))
        total += values
        covered &= inside
    return total / count, covered


def _sample(
    volume: Volume, filtered: np.ndarray, x: np.ndarray, y: np.ndarray, z: float
) -> tuple[np.ndarray, np.ndarray]:
    """Linear interpolation of the source at the points (x, y, z), float32 HU; air where the scan does not reach. The
    first and the last slice reach half a step beyond themselves."""
    n = volume.normal
    places = volume.positions @ n
    wanted = x * n[0] + y * n[1] + z * n[2]
    sign = 1.0 if places[-1] > places[0] else -1.0
    index = np.interp(sign * wanted, sign * places, np.arange(len(places)))
    ends = 0.5 * volume.slice_steps[[0, -1]] + 1e-3
    inside = (sign * wanted >= sign * places[0] - ends[0]) & (sign * wanted <= sign * places[-1] + ends[1])
    origin = [np.interp(index, np.arange(len(places)), volume.positions[:, axis]) for axis in range(3)]
    dx, dy, dz = x - origin[0], y - origin[1], z - origin[2]
    r, c = volume.row_axis, volume.column_axis
    column = (dx * r[0] + dy * r[1] + dz * r[2]) / volume.pixel_spacing[1]
    row = (dx * c[0] + dy * c[1] + dz * c[2]) / volume.pixel_spacing[0]
    inside &= (row > -0.5) & (row < filtered.shape[1] - 0.5) & (column > -0.5) & (column < filtered.shape[2] - 0.5)
    values = ndimage.map_coordinates(filtered, [index, row, column], order=1, mode="nearest")
    return np.where(inside, values, np.float32(HU_MIN)), inside
