"""IC-Net: the network, and its training."""

import numpy as np
import pytest
import torch

from slicewise.networks.icnet import OUTPUTS, ICNet, ICNetConfig, confine


def random_pair(rng, batch=2, side=32):
    return torch.from_numpy(rng.uniform(-1.3, 1.3, (batch, 2, side, side)).clip(-1, 1).astype(np.float32))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("side", [32, 45, 128])
def test_starts_as_the_identity_to_the_bit(output, side):
    x = random_pair(np.random.default_rng(0), side=side)
    y = ICNet(ICNetConfig(output=output))(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, x[:, :1])


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_parameter_learns(output):
    torch.manual_seed(0)
    net = ICNet(ICNetConfig(channels=8, levels=3, output=output))
    for p in net.head.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x = random_pair(np.random.default_rng(1))
    (net(x) * torch.randn(2, 1, 32, 32)).sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_previous_slice_matters(output):
    torch.manual_seed(0)
    net = ICNet(ICNetConfig(channels=8, levels=3, output=output))
    for p in net.head.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x = random_pair(np.random.default_rng(2), batch=1)
    other = x.clone()
    other[:, 1] = (other[:, 1] * 0.8 + 0.05).clamp(-1, 1)
    assert (net(x) - net(other)).abs().max() > 1e-4


@pytest.mark.parametrize("output", OUTPUTS)
def test_stays_lean(output):
    assert sum(p.numel() for p in ICNet(ICNetConfig(output=output)).parameters()) < 600_000


def test_confine_bounds_a_correction_by_the_distance_to_the_border():
    rng = np.random.default_rng(3)
    x = torch.linspace(-1, 1, 2001)
    for _ in range(50):
        gain, offset = rng.uniform(0.5, 2.0), rng.uniform(-0.4, 0.4)
        y = confine(x, gain * x + offset)
        assert y[0] == -1 and y[-1] == 1
        rise = torch.diff(y) / torch.diff(x)
        assert 0.09 < rise.min() and rise.max() < 2.01
    wild = confine(x, torch.from_numpy(rng.normal(0, 3, x.shape).astype(np.float32)))
    assert wild.abs().max() <= 1 and wild[0] == -1 and wild[-1] == 1
    assert torch.equal(confine(x, x), x)
