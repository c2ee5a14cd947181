"""Sections show the head the right way round, round things round, and files are whole."""

import numpy as np
import pytest
from matplotlib import image

from slicewise.errors import UserError
from slicewise.hu import BRAIN
from slicewise.reporting.montage import montage, png, save_montage, sections, slice_sheet, upright
from slicewise.volume import Volume


def world(points):
    """HU at LPS points (..., 3) in mm: a skull, a brain with a bright mark on the left, one in front, one on top."""
    left, posterior, superior = np.moveaxis(points, -1, 0)
    radius = np.sqrt(left**2 + posterior**2 + superior**2)
    hu = np.where(radius < 75, 30.0, np.where(radius < 83, 900.0, -1000.0))
    for axis, sign, value in ((0, 1, 60.0), (1, -1, 90.0), (2, 1, -50.0)):
        mark = np.zeros(3)
        mark[axis] = sign * 45
        hu[np.linalg.norm(points - mark, axis=-1) < 14] = value
    return hu


def acquire(row, column, heights, tilt_deg=0.0, n=(88, 100), pixel=(2.2, 2.0)):
    """`world` scanned with these in-plane axes at these heights along z (mm, descending), gantry tilted about x."""
    tilt = np.deg2rad(tilt_deg)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    row, column = turn @ np.asarray(row, float), turn @ np.asarray(column, float)
    centre = -(row * pixel[1] * (n[1] - 1) + column * pixel[0] * (n[0] - 1)) / 2
    positions = centre + np.array([[0.0, 0.0, h] for h in heights])
    y, x = np.arange(n[0]) * pixel[0], np.arange(n[1]) * pixel[1]
    points = positions[:, None, None] + y[None, :, None, None] * column + x[None, None, :, None] * row
    return Volume(np.rint(world(points)).astype(np.int16), positions, row, column, pixel)


HEIGHTS = np.arange(95.0, -96.0, -5.0)
ORIENTATIONS = [
    ((1, 0, 0), (0, 1, 0)),
    ((-1, 0, 0), (0, 1, 0)),
    ((1, 0, 0), (0, -1, 0)),
    ((-1, 0, 0), (0, -1, 0)),
    ((0, 1, 0), (1, 0, 0)),
    ((0, -1, 0), (-1, 0, 0)),
]


def at(section, right_mm, down_mm):
    """Mean HU about a point given in mm from the middle of a section."""
    r, c = (n / 2 + mm / section.pixel_mm for n, mm in zip(section.hu.shape, (down_mm, right_mm)))
    return section.hu[int(r) - 1 : int(r) + 2, int(c) - 1 : int(c) + 2].mean()


@pytest.mark.parametrize("row, column", ORIENTATIONS)
def test_radiological_convention_however_it_was_acquired(row, column):
    axial, coronal, sagittal = sections(acquire(row, column, HEIGHTS))
    assert at(axial, 45, 0) == pytest.approx(60, abs=3), "the patient's left at image right"
    assert at(axial, 0, -45) == pytest.approx(90, abs=3), "anterior up"
    assert at(axial, -45, 0) == pytest.approx(30, abs=3)
    assert at(axial, 0, 45) == pytest.approx(30, abs=3)
    assert at(coronal, 45, 0) == pytest.approx(60, abs=3)
    assert at(coronal, 0, -45) == pytest.approx(-50, abs=3)
    assert at(sagittal, -45, 0) == pytest.approx(90, abs=3), "the face to the left"
    assert at(sagittal, 0, -45) == pytest.approx(-50, abs=3)
    assert at(sagittal, 0, 45) == pytest.approx(30, abs=3)


@pytest.mark.parametrize("row, column", ORIENTATIONS)
def test_upright_moves_no_voxel_in_space(row, column):
    before = acquire(row, column, HEIGHTS)
    after = upright(before)
    assert after.row_axis[0] > 0.99
    assert after.column_axis[1] > 0.99
    rng = np.random.default_rng(0)
    for _ in range(50):
        z, y, x = (rng.integers(n) for n in after.hu.shape)
        point = after.positions[z] + x * after.pixel_spacing[1] * after.row_axis
        point = point + y * after.pixel_spacing[0] * after.column_axis
        assert after.hu[z, y, x] == np.rint(world(point[None]))[0]


@pytest.mark.parametrize(
    "heights, tilt",
    [
        (HEIGHTS, 0.0),
        (np.concatenate([np.arange(95.0, 10.0, -7.0), np.arange(9.9, -95.0, -4.0)]), 0.0),  # uneven, one narrow gap
        (HEIGHTS, 18.5),
        (HEIGHTS, -18.5),
    ],
)
def test_a_ball_stays_round_in_every_plane(heights, tilt):
    for section in sections(acquire((1, 0, 0), (0, 1, 0), heights, tilt)):
        inside = section.hu > -200
        rows, columns = (np.flatnonzero(inside.any(axis=a)) for a in (1, 0))
        height, width = ((i[-1] - i[0] + 1) * section.pixel_mm for i in (rows, columns))
        # 166 mm across; half a slice of partial volume at either end.
        assert height == pytest.approx(166, abs=6), section.plane
        assert width == pytest.approx(166, abs=6), section.plane
        area = inside.sum() * section.pixel_mm**2
        assert area == pytest.approx(np.pi * 83**2, rel=0.04), section.plane


def test_sections_of_air_and_of_one_slice():
    air = Volume.regular(np.full((4, 32, 32), -1024, np.int16), (5.0, 4.0, 4.0))
    assert all(np.isfinite(s.hu).all() and s.hu.size for s in sections(air))
    one = acquire((1, 0, 0), (0, 1, 0), [0.0])
    axial, coronal, _ = sections(one)
    assert at(axial, 45, 0) == pytest.approx(60, abs=3)
    assert coronal.hu.shape[0] >= 1


def test_montage_shows_six_pictures_on_black(tmp_path):
    volume = acquire((1, 0, 0), (0, 1, 0), HEIGHTS)
    figure = montage([volume], ["one"])
    assert len(figure.axes) == 6
    limits = [axes.images[0].get_clim() for axes in figure.axes]
    assert limits == [(-1024, 3071)] * 3 + [(BRAIN.lo, BRAIN.hi)] * 3
    texts = " ".join(t.get_text() for t in figure.texts)
    assert "−10 … 70 HU" in texts
    assert "−1024 … 3071 HU" in texts
    assert "one" in texts
    assert len(montage([volume, volume, volume], ["a", "b", "c"]).axes) == 18
    save_montage([volume], tmp_path / "new" / "m.png")
    pixels = image.imread(tmp_path / "new" / "m.png")[..., :3]
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 900
    assert pixels[:3].max() == 0
    assert pixels.max() > 0.9
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m.png"]


def test_all_planes_share_one_scale():
    figure = montage([acquire((1, 0, 0), (0, 1, 0), HEIGHTS)])
    sides = {tuple(np.round([*axes.get_xlim(), *axes.get_ylim()], 6)) for axes in figure.axes}
    assert len(sides) == 1


def test_equal_volumes_make_equal_pictures():
    volume = acquire((1, 0, 0), (0, 1, 0), HEIGHTS)
    assert png(montage([volume])) == png(montage([volume]))


def test_slice_sheet_shows_every_slice(tmp_path):
    rng = np.random.default_rng(0)
    hu = np.full((7, 40, 40), -1000, np.int16)
    hu[:, :32, 8:] = rng.integers(0, 60, (7, 1, 1))  # touches the border, as a head does in a narrow field of view
    slice_sheet(Volume.regular(hu, (5.0, 4.0, 4.0)), tmp_path / "sheet.png", title="seven")
    pixels = image.imread(tmp_path / "sheet.png")[..., 0]
    shades = {int(v) for v in np.rint(pixels * 255).ravel()}
    for value in np.unique(hu[:, 20, 20]):
        assert shades & set(range(int(255 * (value + 10) / 80) - 2, int(255 * (value + 10) / 80) + 3))


def test_unwritable_path_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as info:
        save_montage([acquire((1, 0, 0), (0, 1, 0), HEIGHTS[::4])], tmp_path / "file" / "m.png")
    assert "\n" not in str(info.value)
    assert str(tmp_path / "file") in str(info.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
