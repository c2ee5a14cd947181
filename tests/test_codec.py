"""The HU scale on tensors is the HU scale."""

import numpy as np
import pytest
import torch

from slicewise.codec import Codec
from slicewise.hu import HUScale

SCALES = [HUScale(), HUScale(-10, 70), HUScale(companding="half")]


@pytest.mark.parametrize("scale", SCALES)
def test_encoding_is_the_scale_to_a_hundredth_of_a_hu(scale):
    hu = np.random.default_rng(0).uniform(-1100, 3200, 200_000)
    x = Codec(scale).encode(torch.from_numpy(hu)).double().numpy()
    off_hu = np.abs(x - scale.encode(hu)) / scale.slope(np.clip(hu, scale.lo, scale.hi))
    assert off_hu.max() < 0.01


@pytest.mark.parametrize("scale", SCALES)
def test_decoding_is_the_scale(scale):
    x = np.random.default_rng(1).uniform(-1.2, 1.2, 200_000)
    np.testing.assert_allclose(Codec(scale).decode(torch.from_numpy(x)).numpy(), scale.decode(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_every_code_comes_back(scale):
    codes = torch.arange(int(scale.lo), int(scale.hi) + 1)
    assert torch.equal(Codec(scale).decode(Codec(scale).encode(codes)).round().long(), codes)
