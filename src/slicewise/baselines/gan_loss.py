"""The losses of the StyleGANs: non-saturating logistic, R1 and path length."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Mean of -log σ(D(x)) - log(1 - σ(D(G(z)))), from logits (B,)."""
    return F.softplus(-real).mean() + F.softplus(generated).mean()


def generator_loss(generated: Tensor) -> Tensor:
    """Mean of -log σ(D(G(z))), from logits (B,): non-saturating (Goodfellow et al. 2014)."""
    return F.softplus(-generated).mean()


def gradient_norm2(logits: Tensor, images: Tensor) -> Tensor:
    """‖∇_x D(x)‖² of each image, (B,); R1 is γ/2 times its mean over real images (Mescheder et al. 2018).

    `images` (B, 1, H, W) require gradients and led to `logits` (B,). The result can be differentiated.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def path_lengths(images: Tensor, styles: Tensor, directions: Tensor) -> Tensor:
    """‖J_wᵀ y‖ of each image, (B,): how far it moves for a step of w (Karras et al. 2020, section 3.2).

    images (B, 1, H, W) were made from styles (B, L, D), one row a layer; directions y (B, 1, H, W) are standard normal
    and divided by √(HW), the norm averaged over the L layers. With a weight of 2 this is the paper's
    γ = ln 2/(r² (ln r - ln 2)) for a w that all L = 2 log₂ r - 2 layers share.
    """
    y = directions / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * y).sum(), styles, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def r1_weight(size: int, batch: int) -> float:
    """γ = 0.0002·N/M for N pixels an image and M images a step (Karras et al. 2020b, appendix C)."""
    return 0.0002 * size**2 / batch
