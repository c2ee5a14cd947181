"""Tilted planes: where they are met, and what is said of resampling them."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from slicewise.data.resample import _slice_z, shear_note
from slicewise.volume import Volume


@pytest.mark.parametrize("angles", [(20.0, 0.0), (0.0, -15.0), (12.0, 18.0)])
def test_a_tilted_plane_is_met_where_it_is(angles):
    """Every slice's plane holds the point at which the vertical line at (x, y) is said to meet it."""
    row, column = Rotation.from_euler("xy", angles, degrees=True).as_matrix()[:, :2].T
    positions = np.array([[-40.0, -60.0, 90.0 - 5.0 * z] for z in range(4)])
    volume = Volume(np.zeros((4, 8, 8), np.int16), positions, row, column, (1.0, 1.0))
    xy = np.array([13.0, -29.0])
    for position, z in zip(positions, _slice_z(volume, xy)):
        away = np.array([*xy, z]) - position
        assert abs(away @ np.cross(row, column)) < 1e-9


@pytest.mark.parametrize(
    ("step", "degrees", "said"), [(5.0, 0.7, False), (5.0, 0.9, True), (2.5, 5.0, True), (2.4, 20.0, False)]
)
def test_tilt_is_told_where_interpolation_would_show(step, degrees, said):
    """From 2.5 mm on, where a head's planes rise by more than half their distance: 180 mm sin t > step / 2."""
    column = np.array([0.0, np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    normal = np.cross([1.0, 0.0, 0.0], column)
    positions = np.array([10.0, 20.0, 30.0]) - step * np.arange(3)[:, None] * normal
    volume = Volume(np.zeros((3, 4, 4), np.int16), positions, np.array([1.0, 0.0, 0.0]), column, (1.0, 1.0))
    assert bool(shear_note(volume)) == said
