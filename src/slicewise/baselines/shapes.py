"""The shapes of the baselines' networks, which need no torch to be told."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class StyleGAN2Config:
    """Shape of StyleGAN2's generator."""

    size: int = field(default=128, metadata={"derived": True})
    """Pixels per side, a power of two; follows from the data."""
    latent: int = 256
    """Dimensions of z and w."""
    mapping: int = 8
    """Fully connected layers from z to w."""
    channel_base: int = 4096
    """Sets the channels at a size of r pixels: channel_base/r."""
    channel_max: int = 256
    """Largest number of channels."""


@dataclass(frozen=True)
class StyleGAN3Config:
    """Shape of StyleGAN3's generator."""

    size: int = field(default=128, metadata={"derived": True})
    """Pixels per side, a power of two from 16; follows from the data."""
    variant: Literal["t", "r"] = "t"
    """Variant: "t" (translation equivariant) or "r" (rotation as well). The paper eases the start of "r" by blurring
    what the discriminator sees of its first 200,000 images; that is not done here."""
    latent: int = 256
    """Dimensions of z and w."""
    mapping: int = 2
    """Fully connected layers from z to w."""
    layers: int = 14
    """Layers between the Fourier features and the output."""
    channel_base: int = 4096
    """Sets the channels where the cutoff is f: channel_base/(2 f)."""
    channel_max: int = 256
    """Largest number of channels."""


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of the discriminator."""

    size: int = field(default=128, metadata={"derived": True})
    """Pixels per side, a power of two; follows from the data."""
    channel_base: int = 4096
    """Sets the channels at a size of r pixels: channel_base/r."""
    channel_max: int = 256
    """Largest number of channels."""
    group: int = 4
    """Slices per group for the minibatch standard deviation, which the discriminator sees."""


@dataclass(frozen=True)
class SliceVAEConfig:
    """Shape of the slice VAE."""

    channels: tuple[int, ...] = (16, 32, 64, 128, 256, 256)
    """Channels after each halving; the latent is `latent` channels of size/2^levels pixels per side."""
    latent: int = 256
    """Channels of the latent."""
    slices: int = field(default=32, metadata={"derived": True})
    """T, slices of a head, from the vertex down; follows from the data."""
    components: int = 64
    """Principal components kept for the columns of each latent dimension."""
    size: int = field(default=128, metadata={"derived": True})
    """Pixels per side; follows from the data."""

    @property
    def bottom(self) -> int:
        """Pixels per side of the latent."""
        return int(self.size // 2 ** len(self.channels))
