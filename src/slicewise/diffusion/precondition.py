"""EDM preconditioning (Karras et al. 2022, table 1), with one noise level a slice.

The path of x is float32 here and float64 in the samplers; only the network core may run in half precision. c_skip x is
never computed in half precision: at |x| in [1/2, 1) one unit in the last place is 1 HU in fp16 and 8 HU in bf16.
"""

from collections.abc import Callable

import torch

# The raw network F: (x (B, K, H, W), c_noise (B, K), condition (B, C) or None) -> (B, K, H, W), all float32.
Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def c_skip(sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """sigma_data^2 / (sigma^2 + sigma_data^2)."""
    return sigma_data**2 / (sigma**2 + sigma_data**2)


def c_out(sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
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


def denoise(
    network: Network,
    x: torch.Tensor,
    sigma: torch.Tensor,
    condition: torch.Tensor | None,
    sigma_data: float,
    core_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

    Parameters
    ----------
    network : the raw network F.
    x : (B, K, H, W) noisy slices in unit range, float32 or float64.
    sigma : (B, K) noise level of every slice, float64, > 0. The joint model is the case of K equal entries.
    condition : (B, C) float32 scalars, or None.
    sigma_data : root mean square of clean x over the training set.
    core_dtype : dtype in which autocast runs the core F; its output layer stays float32.

    Returns
    -------
    The clean slices' estimate, (B, K, H, W), in x's dtype. The score is (D - x) / sigma^2.
    """
    s = sigma.double()[:, :, None, None]
    inputs = (c_in(s, sigma_data) * x).float()
    half = core_dtype != torch.float32
    with torch.autocast(x.device.type, dtype=core_dtype if half else torch.bfloat16, enabled=half):
        f = network(inputs, c_noise(sigma.double()).float(), condition)
    assert f.dtype == torch.float32, "the network's output layer must be float32"
    return c_skip(s, sigma_data).to(x.dtype) * x + c_out(s, sigma_data).to(x.dtype) * f


def score(denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    """grad log p(x; sigma) = (D(x; sigma) - x) / sigma^2."""
    return (denoised - x) / sigma**2
