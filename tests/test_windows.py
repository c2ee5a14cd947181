"""Windows of slices: what a chain will be given, air above the vertex and below the last slice included."""

from pathlib import Path

import numpy as np
import pytest

from slicewise.data.store import open_store, put_volume
from slicewise.data.windows import Heads, root_mean_square, training_windows
from slicewise.errors import UserError
from slicewise.hu import HUScale
from slicewise.volume import Volume


def _store(path: Path, shapes=((7, 16, 16), (5, 16, 16)), spacing=(5.0, 1.0, 1.0), vertex=2, split="train"):
    rng = np.random.default_rng(0)
    for i, shape in enumerate(shapes):
        hu = rng.integers(-1024, 3072, shape).astype(np.int16)
        volume = Volume.regular(hu, spacing)
        put_volume(path, volume, id=f"v{i}", patient=f"p{i}", split=split, vertex_slice=vertex)
    return open_store(path)


@pytest.mark.parametrize("k", [2, 3])
def test_every_window_is_the_slices_it_says_with_air_around(tmp_path, k):
    store = _store(tmp_path)
    windows = training_windows(store, "train", k)
    expected = []
    for record in store.records:
        head = np.asarray(store.hu(record))[2:]  # from the vertex
        air = np.full((k - 1, 16, 16), -1024, np.int16)
        padded = np.concatenate([air, head, air[:1]])  # K-1 slices of air above, one below
        expected += [(padded[i : i + k], 5.0 * i) for i in range(len(head) + 1)]
    assert len(windows) == len(expected) == (5 + 1) + (3 + 1)
    for i, (hu, position) in enumerate(expected):
        found, mm = windows.read(i)
        assert found.dtype == np.int16
        assert np.array_equal(found, hu)
        assert mm == position


def test_the_first_window_holds_one_head_slice_and_the_last_ends_in_air(tmp_path):
    store = _store(tmp_path, shapes=((6, 16, 16),))
    windows = training_windows(store, "train", 3)
    first, position = windows.read(0)
    assert (first[:2] == -1024).all()
    assert np.array_equal(first[2], store.hu(store.records[0])[2])
    assert position == 0.0
    last, position = windows.read(len(windows) - 1)
    assert (last[2] == -1024).all()
    assert not (last[1] == -1024).all()
    assert position == 4 * 5.0


def test_an_empty_split_is_said(tmp_path):
    store = _store(tmp_path)
    with pytest.raises(UserError, match="no volume in the val split"):
        training_windows(store, "val", 3)


def test_a_store_of_two_grids_is_refused(tmp_path):
    _store(tmp_path / "size", shapes=((5, 16, 16),))
    put_volume(
        tmp_path / "size",
        Volume.regular(np.zeros((5, 24, 24), np.int16), (5.0, 1.0, 1.0)),
        id="other",
        patient="p",
        split="val",
    )
    with pytest.raises(UserError, match=r"\(16, 16\), \(24, 24\)"):
        training_windows(open_store(tmp_path / "size"), "train", 3)
    _store(tmp_path / "mm", shapes=((5, 16, 16),))
    put_volume(
        tmp_path / "mm",
        Volume.regular(np.zeros((5, 16, 16), np.int16), (2.5, 1.0, 1.0)),
        id="other",
        patient="p",
        split="train",
    )
    with pytest.raises(UserError, match=r"\(2\.5, 1\.0, 1\.0\), \(5\.0, 1\.0, 1\.0\)"):
        training_windows(open_store(tmp_path / "mm"), "train", 3)


def test_slices_that_are_not_square_are_refused(tmp_path):
    with pytest.raises(UserError, match="not square"):
        training_windows(_store(tmp_path, shapes=((5, 16, 24),)), "train", 3)


def test_root_mean_square_is_that_of_the_windows(tmp_path):
    windows = training_windows(_store(tmp_path), "train", 3)
    scale = HUScale(companding="half")
    x = np.stack([scale.encode(windows.read(i)[0]) for i in range(len(windows))]).astype(np.float64)
    assert root_mean_square(windows, scale, count=3000) == pytest.approx(np.sqrt(np.mean(x**2)), rel=0.02)


def test_heads_lie_in_memory_where_they_fit_to_the_byte(tmp_path):
    store = _store(tmp_path)
    needed = 2 * 16 * 16 * (5 + 3)
    assert Heads(store, "train", memory=needed).rows is not None
    assert Heads(store, "train", memory=needed - 1).rows is None
