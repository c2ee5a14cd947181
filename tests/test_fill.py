"""Missing slices: found in a scan, drawn given both sides, and said to be synthetic."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from conftest import toy_head
from slicewise.cli import main
from slicewise.data.resample import Grid
from slicewise.errors import UserError
from slicewise.fill import fill_volume, on_grid, with_even_slices
from slicewise.io.archive import read_volume
from slicewise.io.dicom_write import write_series
from slicewise.pyramid import Pyramid, load_pyramid
from slicewise.sampling import ChainSettings
from slicewise.volume import Volume
from test_pyramid import levels, store, whole  # noqa: F401 (fixtures)

FEW = ChainSettings(draw_steps=3, plan_steps=3)


@pytest.fixture(scope="module")
def pyramid(whole: Path) -> Pyramid:  # noqa: F811
    return load_pyramid(whole)


@pytest.fixture
def head() -> Volume:
    return Volume.regular(toy_head(9, slices=8, size=32), (5.0, 6.0, 6.0))


def _without(volume: Volume, *missing: int) -> Volume:
    keep = [z for z in range(len(volume.hu)) if z not in missing]
    return replace(volume, hu=volume.hu[keep], positions=volume.positions[keep])


def test_holes_are_found_and_their_slices_numbered(head):
    even, missing = with_even_slices(_without(head, 2, 5, 6))
    assert missing == (2, 5, 6)
    np.testing.assert_allclose(even.positions, head.positions)
    keep = [0, 1, 3, 4, 7]
    np.testing.assert_array_equal(even.hu[keep], head.hu[keep])
    assert with_even_slices(head)[1] == ()


@pytest.mark.parametrize("hole, expected", [((8, 9, 10, 11), (2,)), ((9, 10), ()), (tuple(range(8, 16)), (2, 3))])
def test_on_a_coarser_grid_a_slice_is_missing_where_most_of_it_is(hole, expected):
    """1.25 mm slices to 5 mm ones, which are means of four."""
    fine = np.repeat(toy_head(3, slices=9, size=32), 4, axis=0)
    volume = Volume.regular(fine, (1.25, 6.0, 6.0))
    grid = Grid.of(32, (5.0, 6.0, 6.0))
    made, missing = on_grid(volume, (), grid)
    assert missing == ()
    top = made.positions[0, 2]
    # The hole, counted from the first slice of the grid, whichever phase that has.
    first = round((volume.positions[0, 2] - top) / 1.25)
    shifted = tuple(first + z - 2 for z in hole)
    assert on_grid(volume, shifted, grid)[1] == expected


def test_real_slices_keep_every_voxel_and_drawn_ones_are_told(pyramid, head):
    spoilt = head.with_hu(head.hu.copy())
    spoilt.hu[3:5] = 3000
    done = fill_volume(pyramid, spoilt, [3, 4], chain=FEW)
    assert done.acquisition.synthetic
    assert done.acquisition.real_slices == (0, 1, 2, 5, 6, 7)
    np.testing.assert_array_equal(done.hu[[0, 1, 2, 5, 6, 7]], head.hu[[0, 1, 2, 5, 6, 7]])
    np.testing.assert_array_equal(done.positions, head.positions)
    assert done.hu[3:5].max() < 3000, "what stood there does not count"
    np.testing.assert_array_equal(done.hu, fill_volume(pyramid, head, [3, 4], chain=FEW).hu)
    assert not np.array_equal(done.hu, fill_volume(pyramid, head, [3, 4], chain=FEW, seed=1).hu)


def test_a_denoiser_alone_fills_given_both_sides(levels, store, head):  # noqa: F811
    from slicewise.checkpoint import load_denoiser

    coarse = Volume.regular(head.hu[:, ::4, ::4].copy(), (5.0, 24.0, 24.0))
    denoiser, few = load_denoiser(levels[0]), replace(FEW, steps=3)
    done = fill_volume(denoiser, coarse, [3], chain=few)
    other = coarse.with_hu(coarse.hu.copy())
    other.hu[4] = np.flip(other.hu[4], 0)
    assert not np.array_equal(done.hu[3], fill_volume(denoiser, other, [3], chain=few).hu[3])


def test_air_above_the_vertex_stays_and_slices_are_numbered_below_it(pyramid, head):
    air = np.full((2, 32, 32), -1000, np.int16)
    higher = Volume.regular(np.concatenate([air, head.hu]), head.spacing)
    done = fill_volume(pyramid, higher, [5], chain=FEW)
    np.testing.assert_array_equal(done.hu[:2], air)
    np.testing.assert_array_equal(done.hu[2:], fill_volume(pyramid, head, [3], chain=FEW).hu)


def test_a_cut_head_is_completed_below_and_above(pyramid, head):
    part = replace(head, hu=head.hu[2:6], positions=head.positions[2:6])
    below = fill_volume(pyramid, part, [], chain=FEW, complete=["down"], above_mm=10.0)
    both = fill_volume(pyramid, part, [1], chain=FEW, complete=["up", "down"], above_mm=10.0)
    assert below.acquisition.real_slices == (0, 1, 2, 3)
    assert len(below.hu) > 4
    real = both.acquisition.real_slices
    above = real[0]
    assert 0 < above <= 2
    assert real == (above, above + 2, above + 3)
    np.testing.assert_array_equal(both.hu[list(real)], part.hu[[0, 2, 3]])
    np.testing.assert_allclose(both.positions[above : above + 4], part.positions)
    assert both.positions[0, 2] == pytest.approx(part.positions[0, 2] + 5.0 * above)


def test_what_cannot_be_filled_is_one_line(pyramid, levels, head):  # noqa: F811
    from slicewise.checkpoint import load_denoiser

    deep = Volume.regular(toy_head(1, slices=20, size=32), head.spacing)
    for volume, missing, options, words in (
        (head, [9], {}, "the volume has slices 0 to 7"),
        (head, [], {}, "no slice is missing"),
        (head, [0, 1], {}, "no neighbour beyond it"),
        (head, list(range(8)), {}, "no neighbour beyond it"),
        (head, [], {"complete": ["up"]}, "how much is missing"),
        (head, [2], {"above_mm": -5.0}, "how much is missing"),
        (deep, [14], {}, "down to 55 mm below the vertex"),
        (deep, [], {"complete": ["down"]}, "down to 55 mm below the vertex"),
        (Volume.regular(head.hu, (4.0, 6.0, 6.0)), [2], {}, "even axial slices, 32 x 32 pixels"),
    ):
        with pytest.raises(UserError, match=words):
            fill_volume(pyramid, volume, missing, chain=FEW, **options)
    coarse = Volume.regular(head.hu[:, ::4, ::4].copy(), (5.0, 24.0, 24.0))
    with pytest.raises(UserError, match="has no plan"):
        fill_volume(load_denoiser(levels[0]), coarse, [], complete=["down"])


def test_a_series_with_a_hole_is_filled_and_says_which_slices_are_synthetic(whole, head, tmp_path, capsys):  # noqa: F811
    files = write_series(head, tmp_path / "scan", synthetic=None, patient_id="P1")
    files[3].unlink()
    out = tmp_path / "filled"
    main(["fill", str(tmp_path / "scan"), "--out", str(out), "--checkpoint", str(whole), "--device", "cpu"])
    assert "drew      slice 3 of 8" in capsys.readouterr().out
    done = read_volume(out).volume
    keep = [0, 1, 2, 4, 5, 6, 7]
    np.testing.assert_array_equal(done.hu[keep], head.hu[keep])
    assert done.acquisition.real_slices == tuple(keep)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(out.iterdir())]
    assert [ds.SyntheticData for ds in headers] == ["NO"] * 3 + ["YES"] + ["NO"] * 4
    assert {ds.PatientID for ds in headers} == {"P1"}
    scan = pydicom.dcmread(files[0], stop_before_pixels=True)
    assert {ds.StudyInstanceUID for ds in headers} == {scan.StudyInstanceUID}, "it joins the patient's study"
    assert all("in which slice 4 is synthetic, for research only" in ds.DerivationDescription for ds in headers)


def test_a_scan_on_another_grid_is_refused_or_resampled(whole, head, tmp_path, capsys):  # noqa: F811
    other = Volume.regular(np.kron(head.hu, np.ones((1, 2, 2), np.int16)), (5.0, 3.0, 3.0))
    files = write_series(other, tmp_path / "scan", synthetic=None, patient_id="P1")
    files[3].unlink()
    command = ["fill", str(tmp_path / "scan"), "--out", str(tmp_path / "out.nii.gz"), "--checkpoint", str(whole)]
    with pytest.raises(SystemExit):
        main(command)
    assert "--resample brings it there" in capsys.readouterr().err
    main([*command, "--resample"])
    assert "drew      slice 3 of" in capsys.readouterr().out
    assert read_volume(tmp_path / "out.nii.gz").volume.hu.shape[1:] == (32, 32)
