"""Batches of a training: the same however they are divided and wherever heads lie; crops; dequantisation."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from slicewise.data.store import open_store, put_volume
from slicewise.data.windows import draw_cut
from slicewise.errors import UserError
from slicewise.networks.unet import _coordinates
from slicewise.random import TRAIN_ORDER, Draws
from slicewise.runtime import Process
from slicewise.training.denoiser import Batches, training_windows
from slicewise.volume import Volume
from test_training import TOY, _same


def test_batches_split_over_processes_are_the_whole_batch(toy_store):
    windows = training_windows(toy_store, "train", 3)
    settings = replace(TOY, flip=True, crop=(8, 12))
    whole = Batches(windows, settings, range(4)).make(7)
    parts = [Batches(windows, settings, Process(r, 3, torch.device("cpu")).share(4)).make(7) for r in range(3)]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([p[name] for p in parts]), value, rtol=0, atol=1e-6)
    assert not torch.equal(whole["noise"], Batches(windows, settings, range(4)).make(8)["noise"])
    assert whole["sigma"].dtype == torch.float64
    assert whole["clean"].dtype == torch.float32


def test_heads_on_disk_make_the_same_batches_as_heads_in_memory(toy_store):
    settings = replace(TOY, flip=True, crop=(8, 12))
    in_memory = training_windows(toy_store, "train", 3)
    on_disk = replace(in_memory, heads=type(in_memory.heads)(toy_store, "train", memory=0))
    assert on_disk.heads.rows is None
    assert in_memory.heads.rows is not None
    for step in range(4):
        a, b = (Batches(windows, settings, range(16)).make(step) for windows in (in_memory, on_disk))
        assert _same(a, b)


def test_a_file_that_is_cut_while_training_is_one_line(toy_store, tmp_path):
    path = tmp_path / "store"
    shutil.copytree(toy_store.path, path)
    windows = training_windows(open_store(path), "train", 3)
    windows = replace(windows, heads=type(windows.heads)(open_store(path), "train", memory=0))
    for file in (path / "volumes").glob("*.npy"):
        file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"h\d.npy"):
        for step in range(20):
            Batches(windows, TOY, range(16)).make(step)


def test_a_crop_holds_the_head_and_says_where_it_lies(tmp_path):
    """The coordinates that a network makes of the frame are those of the same pixels of the whole slice."""
    rng = np.random.default_rng(0)
    whole = _coordinates(torch.zeros(1, 1, 32, 32), None)[0]
    extents = []
    for i in range(60):
        height, width = rng.integers(4, 41), rng.integers(4, 49)
        y, x = rng.integers(0, 65 - height), rng.integers(0, 65 - width)
        hu = np.full((3, 64, 64), -1000, np.int16)
        hu[:, y : y + height, x : x + width] = rng.integers(0, 90, (3, height, width))
        volume = Volume.regular(hu, (5.0, 3.0, 3.0))
        put_volume(tmp_path, volume, id=f"v{i:02d}", patient=f"p{i}", split="train", vertex_slice=0)
        extents.append((height, width))
    windows = training_windows(open_store(tmp_path), "train", 3)
    numbers = torch.arange(60) * 4 + 2  # the window of all three slices of every head
    firsts = set()
    for step in range(4):
        cut, frame = draw_cut(
            windows.heads, windows.rows(numbers), (40, 32), 2, True, Draws(0, range(60), 0, step, TRAIN_ORDER)
        )
        parts = windows.heads.cut(cut)
        assert parts.shape == (60, 3, 40, 32)
        assert 10 < int(cut.flip.sum()) < 50
        for i, part in enumerate(parts.numpy()):
            hu = windows.read(int(numbers[i]))[0]
            hu = hu[:, :, ::-1] if cut.flip[i] else hu
            seen = (part > -500).any(axis=0)
            # Its first row and column are even: one pixel of a head that is as large as the crop may lie outside.
            for axis, (head, side) in enumerate(zip(extents[i], (40, 32))):
                assert seen.any(axis=1 - axis).sum() >= min(head, side) - (head >= side)
            found = _coordinates(torch.zeros(1, 1, 20, 16), frame[i : i + 1])[0]
            top = int((whole[1, :, 0] - found[1, 0, 0]).abs().argmin())
            left = int((whole[0, 0, :] - found[0, 0, 0]).abs().argmin())
            torch.testing.assert_close(found, whole[:, top : top + 20, left : left + 16], rtol=0, atol=1e-5)
            np.testing.assert_array_equal(part, hu[:, 2 * top : 2 * top + 40, 2 * left : 2 * left + 32])
            firsts.add((top, left))
    assert len(firsts) > 50, "where there is room the crop lies at random"


def test_a_crop_of_air_lies_anywhere(tmp_path):
    put_volume(
        tmp_path, Volume.regular(np.full((3, 64, 64), -1000, np.int16), (5.0, 3.0, 3.0)), id="v", patient="p",
        split="train", vertex_slice=0,
    )  # fmt: skip
    windows = training_windows(open_store(tmp_path), "train", 3)
    rows = windows.rows(torch.full((200,), 2))
    cut, _ = draw_cut(windows.heads, rows, (40, 48), 2, True, Draws(0, range(200), 0, 0, TRAIN_ORDER))
    assert set(cut.top.tolist()) == set(range(0, 25, 2))
    assert set(cut.left.tolist()) == set(range(0, 17, 2))


def test_without_a_crop_the_whole_is_taken(toy_store):
    windows = training_windows(toy_store, "train", 3)
    cut, frame = draw_cut(
        windows.heads, windows.rows(torch.arange(4)), (0, 0), 2, False, Draws(0, range(4), 0, 0, TRAIN_ORDER)
    )
    for i, part in enumerate(windows.heads.cut(cut)):
        assert np.array_equal(part.numpy(), windows.read(i)[0])
        assert frame[i].tolist() == [-1, -1, 1, 1]


def test_clean_data_are_spread_over_their_hu_bin(toy_store):
    batch = Batches(training_windows(toy_store, "train", 3), TOY, range(30)).make(0)
    hu = TOY.scale.decode(batch["clean"].numpy())
    inside = hu[(hu > -1023) & (hu < 3070)]
    offset = inside - np.rint(inside)
    assert np.abs(offset).max() <= 0.5
    assert offset.std() == pytest.approx(1 / np.sqrt(12), rel=0.03)
