"""Calibration in HU: the window's border, chains, and histogram matching against scikit-image."""

import numpy as np
import pytest
import torch

from slicewise.calibrate import calibrate_slice, calibrate_volume, match_histogram, match_volume
from slicewise.errors import UserError
from slicewise.networks.icnet import ICNet
from slicewise.networks.shapes import OUTPUTS, ICNetConfig
from slicewise.volume import Volume


def make_net(output="affine", gain=1.0, offset_hu=0.0, seed=0):
    """An IC-Net whose affine head gives one gain and offset for every input; residual: random corrections."""
    torch.manual_seed(seed)
    net = ICNet(ICNetConfig(channels=8, levels=3, output=output))
    with torch.no_grad():
        if output == "affine":
            net.map.bias[0] = np.arctanh(np.log(gain) / np.log(2.0))
            net.map.bias[1] = np.arctanh(offset_hu / 60.0)
        else:
            net.image.weight.normal_(std=3.0)
    return net


def make_volume(rng, shape=(6, 40, 44)):
    hu = rng.normal(30, 60, shape)
    hu[:, :8] = -1024
    hu[:, 8:11] = rng.integers(300, 1500, (shape[0], 3, shape[2]))
    return Volume.regular(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), (5.0, 1.0, 1.0))


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_fresh_net_changes_nothing(output):
    volume = make_volume(np.random.default_rng(1))
    net = ICNet(ICNetConfig(channels=8, levels=3, output=output))
    for seed in (None, 3):
        np.testing.assert_array_equal(calibrate_volume(net, volume, seed).hu, volume.hu)


@pytest.mark.parametrize("output", OUTPUTS)
def test_voxels_outside_the_window_keep_their_hu_exactly(output):
    rng = np.random.default_rng(2)
    hu = rng.uniform(-1024, 3071, (2, 40, 44))
    hu[:, ::2] = rng.uniform(-200, 200, hu[:, ::2].shape)
    hu[0, 0, :2] = -150.0, 150.0
    net = make_net(output, gain=1.3, offset_hu=-15)
    result = calibrate_slice(net, hu, rng.uniform(-200, 200, hu.shape))
    outside = (hu <= -150) | (hu >= 150)
    np.testing.assert_array_equal(result[outside], hu[outside])
    assert np.abs(result - hu)[~outside].max() > 5
    assert result[~outside].min() >= -150
    assert result[~outside].max() <= 150


@pytest.mark.parametrize("gain, offset", [(1 / 1.3, 0), (1 / 0.7, 0), (1.0, 20), (1.0, -20), (0.8, 20), (1.4, -20)])
def test_the_affine_map_is_exact_inside_monotone_and_without_a_step_at_the_border(gain, offset):
    ramp = np.linspace(-400, 400, 8001).reshape(1, 1, -1)
    inside = np.abs(ramp) < 150
    result = calibrate_slice(make_net(gain=gain, offset_hu=offset), ramp, ramp).ravel()
    h = ramp.ravel()
    rise = np.diff(result) / np.diff(h)
    assert rise.min() > 0.05, "two HU fell together or changed order"
    assert rise.max() < 2.05, "a step"
    affine = h[inside.ravel()].mean() * (1 - gain) + gain * h + offset
    soft_tissue = (h > -60) & (h < 90)
    expected = np.clip(affine, -150, 150)
    np.testing.assert_allclose(result[soft_tissue], expected[soft_tissue], atol=1e-3)


def test_slices_are_calibrated_alone_and_in_any_leading_shape():
    rng = np.random.default_rng(3)
    net = make_net("residual")
    hu, previous = rng.normal(30, 50, (2, 3, 33, 35))
    together = calibrate_slice(net, hu, previous)
    assert together.dtype == np.float64
    assert together.shape == hu.shape
    for b in range(3):
        alone = calibrate_slice(net, hu[b].astype(np.float32), previous[b])
        assert alone.shape == hu[b].shape
        np.testing.assert_allclose(alone, together[b], atol=2e-3)


def test_the_chain_hands_on_calibrated_slices_and_runs_outward_from_the_seed():
    volume = make_volume(np.random.default_rng(4))
    net = make_net("residual")
    n = len(volume.hu)
    hu = volume.hu.astype(float)
    air = np.full(hu.shape[1:], -1024.0)
    expected = hu.copy()
    for z in range(n):
        expected[z] = calibrate_slice(net, hu[z], expected[z - 1] if z else air)
    np.testing.assert_array_equal(calibrate_volume(net, volume).hu, np.rint(expected))

    expected = hu.copy()
    for z in (3, 4, 5):
        expected[z] = calibrate_slice(net, hu[z], expected[z - 1])
    for z in (1, 0):
        expected[z] = calibrate_slice(net, hu[z], expected[z + 1])
    result = calibrate_volume(net, volume, seed_slice=2)
    np.testing.assert_array_equal(result.hu, np.rint(expected))
    np.testing.assert_array_equal(result.hu[2], volume.hu[2])
    assert result.spacing == volume.spacing
    assert not np.array_equal(result.hu, calibrate_volume(net, volume).hu)


@pytest.mark.parametrize("seed", range(5))
def test_match_histogram_agrees_with_scikit_image(seed):
    exposure = pytest.importorskip("skimage.exposure")
    rng = np.random.default_rng(seed)
    image = rng.integers(-1024, 3072, (37, 41)) if seed % 2 else rng.normal(30, 80, (37, 41))
    reference = np.rint(rng.gamma(2.0, 40.0, (29, 31)) - 50).astype(np.int16)
    np.testing.assert_allclose(match_histogram(image, reference), exposure.match_histograms(image, reference))
    same = match_histogram(reference, reference)
    np.testing.assert_array_equal(same, reference)


def test_match_volume_follows_the_seed_or_the_chain():
    exposure = pytest.importorskip("skimage.exposure")
    volume = make_volume(np.random.default_rng(6))
    hu = volume.hu.astype(float)
    to_seed = [exposure.match_histograms(s, hu[2]) for s in hu]
    np.testing.assert_array_equal(match_volume(volume, "seed", 2).hu, np.rint(to_seed))
    chain = hu.copy()
    for before, z in ((2, 3), (3, 4), (4, 5), (2, 1), (1, 0)):
        chain[z] = exposure.match_histograms(hu[z], chain[before])
    np.testing.assert_array_equal(match_volume(volume, "previous", 2).hu, np.rint(chain))


def test_mistakes_are_told_in_one_line():
    volume = make_volume(np.random.default_rng(7))
    for call in (
        lambda: match_volume(volume, "next"),
        lambda: match_volume(volume, "seed", 6),
        lambda: calibrate_volume(make_net(), volume, -1),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert "\n" not in str(error.value)
