"""EDM preconditioning (Karras et al. 2022, table 1), with one noise level a slice.

The path of x is float32 here and float64 in the samplers; only the network core may run in half precision. c_skip x is
never computed in half precision: at |x| in [1/2, 1) one unit in the last place is 1 HU in fp16 and 8 HU in bf16.
"""

from collections.abc import Callable

import torch

from slicewise.networks.local import Local

# The raw network: (x (B, K, H, W), c_noise (B, K), condition (B, C) or None) -> F (B, A, H, W), or `Local` where it is
# that (see `posterior`), float32, of the first A slices.
Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor | Local]


def c_skip(sigma: torch.Tensor, sigma_data: float | torch.Tensor) -> torch.Tensor:
    """sigma_data^2 / (sigma^2 + sigma_data^2)."""
    return sigma_data**2 / (sigma**2 + sigma_data**2)


def c_out(sigma: torch.Tensor, sigma_data: float | torch.Tensor) -> torch.Tensor:
    """sigma sigma_data / sqrt(sigma^2 + sigma_data^2)."""
    return sigma * sigma_data / torch.sqrt(sigma**2 + sigma_data**2)


def c_in(sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """1 / sqrt(sigma^2 + sigma_data^2)."""
    return 1 / torch.sqrt(sigma**2 + sigma_data**2)


def c_noise(sigma: torch.Tensor) -> torch.Tensor:
    """ln(sigma) / 4."""
    return torch.log(sigma) / 4


def loss_weight(sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / c_out^2."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def posterior(
    network: Network,
    x: torch.Tensor,
    sigma: torch.Tensor,
    condition: torch.Tensor | None,
    sigma_data: float,
    core_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The estimate D(x; sigma) of the clean slices, and how far from them it is expected to be.

    A plain network is EDM's: D = c_skip x + c_out F. A *local* one names for every voxel the mean sigma_data M and the
    spread s = sigma_data exp(S) that the voxel has before its own noisy value is seen, and is
    preconditioned by that s instead of the whole data's: D = c_skip(s) x + (1 - c_skip(s)) sigma_data M + c_out(s) F.
    For a Gaussian voxel this is the exact posterior with F = 0. It matters in the brain, which spans a hundredth of the
    data's range: EDM's F has to cancel the noise there to within a per cent, a local network divides it away.

    Parameters
    ----------
    network : the raw network.
    x : (B, K, H, W) noisy slices in unit range, float32 or float64.
    sigma : (B, K) noise level of every slice, float64, > 0. The joint model is the case of K equal entries.
    condition : (B, C) float32 scalars, or None.
    sigma_data : root mean square of clean x over the training set.
    core_dtype : dtype in which autocast runs the core; its output layer stays float32.

    Returns
    -------
    D (B, A, H, W) of the slices that the network answers for, and the standard deviation c_out(s), (B, A, H, W) or, of
    a plain network, c_out(sigma_data) (B, A, 1, 1), both in x's dtype.
    """
    levels = sigma.double()[:, :, None, None]
    inputs = (c_in(levels, sigma_data) * x).float()
    half = core_dtype != torch.float32
    with torch.autocast(x.device.type, dtype=core_dtype if half else torch.bfloat16, enabled=half):
        out = network(inputs, c_noise(sigma.double()).float(), condition)
    f = out.f if isinstance(out, Local) else out
    assert f.dtype == torch.float32, "the network's output layer must be float32"
    x, levels = x[:, : f.shape[1]], levels[:, : f.shape[1]]
    if not isinstance(out, Local):
        deviation = c_out(levels, sigma_data).to(x.dtype)
        return c_skip(levels, sigma_data).to(x.dtype) * x + deviation * out, deviation
    f, mean, spread = (part.to(x.dtype) for part in out)
    spread = sigma_data * torch.exp(spread)
    levels = levels.to(x.dtype)
    skip, deviation = c_skip(levels, spread), c_out(levels, spread)
    return skip * x + (1 - skip) * (sigma_data * mean) + deviation * f, deviation


def denoise(
    network: Network,
    x: torch.Tensor,
    sigma: torch.Tensor,
    condition: torch.Tensor | None,
    sigma_data: float,
    core_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """D(x; sigma) of `posterior`, whose parameters these are. The score is (D - x) / sigma^2."""
    return posterior(network, x, sigma, condition, sigma_data, core_dtype)[0]


def score(denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    """grad log p(x; sigma) = (D(x; sigma) - x) / sigma^2."""
    return (denoised - x) / sigma**2
