"""The settings of every training."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from slicewise.baselines.shapes import DiscriminatorConfig, SliceVAEConfig, StyleGAN2Config, StyleGAN3Config
from slicewise.diffusion.settings import SigmaDistribution, WindowTask
from slicewise.errors import UserError
from slicewise.hu import HUScale
from slicewise.networks.shapes import ICNetConfig, NCSNppConfig, UNet3dConfig, UNetConfig


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of every training."""

    steps: int = 6000
    """Optimiser steps."""
    minutes: float = 0.0
    """Minutes of wall-clock time for the whole run, instead of steps (0 = by steps); a finished run resumes if given
    more."""
    batch: int = 16
    """Samples per step, over all processes together."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    warmup: float = 0.02
    """Share of the run over which the rate rises linearly."""
    cooldown: float = 0.3
    """Share of the run, at its end, over which the rate falls linearly to zero."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    """Seed of weights, order and noise."""
    save_minutes: float = 5.0
    """Minutes between checkpoints (0 = after every step)."""
    validations: int = 6
    """Validations in a run, evenly spread."""
    samples: int = 0
    """Pictures of generated slices in a run, evenly spread."""
    device: str = "auto"
    """Where to train: "auto" (CUDA if available), "cpu", "cuda", "cuda:1", …"""
    tensorboard: bool = False
    """Also write TensorBoard logs."""

    def check(self) -> None:
        """`UserError` naming the first setting that no training can have."""
        above = [name for name in ("steps", "batch", "lr", "clip") if not getattr(self, name) > 0]
        below = [n for n in ("minutes", "save_minutes", "validations", "samples") if not getattr(self, n) >= 0]
        outside = [n for n in ("warmup", "cooldown") if not 0 <= getattr(self, n) <= 1]
        for names, bound in ((above, "be above 0"), (below, "not be below 0"), (outside, "lie in [0, 1]")):
            for name in names:
                raise UserError(f"{type(self).__name__}.{name}={getattr(self, name)}: must {bound}")


@dataclass(frozen=True, kw_only=True)
class DenoiserTraining(RunSettings):
    """Settings of a denoiser's training."""

    network: Literal["unet", "unet3d", "ncsnpp"] = "unet"
    """Network: "unet" (lean), "ncsnpp" (the paper's) or "unet3d" (whole heads at once, for the plan of a pyramid)."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    """Shape of the lean network."""
    unet3d: UNet3dConfig = field(default_factory=UNet3dConfig)
    """Shape of the network of whole heads."""
    ncsnpp: NCSNppConfig = field(default_factory=NCSNppConfig)
    """Shape of the paper's network."""
    slices: int = 3
    """K, slices in a window; of "unet3d", more than the longest head has."""
    pool: int = 1
    """Train on pixels this many times as large as the store's, for the plan of a pyramid (see `pyramid`)."""
    above: int = 0
    """Also see the slices of a level whose pixels are this many times as large: those above, at and below the wanted
    slice, as a pyramid's drawer does; 0 for none."""
    above_sigma: float = 0.05
    """Largest noise on the slices of that level, in units of x, drawn log-uniformly from a fifteenth of it upward:
    it decides how far the drawer trusts an imperfect plan."""
    task: WindowTask = field(default_factory=WindowTask)
    """How the slices of a window are corrupted."""
    sigma: SigmaDistribution = field(default_factory=SigmaDistribution)
    """Distribution of noise levels."""
    scale: HUScale = field(default_factory=lambda: HUScale(companding="half"))
    """Window and companding of the HU scale."""
    position: bool = True
    """Tell the network each window's position below the vertex."""
    starts: float = 0.08
    """Extra share of windows at which a chain starts from air: that one slice in thirty decides the rest."""
    flip: bool = False
    """Mirror windows left to right at random (the paper augments nothing)."""
    crop: tuple[int, int] = (0, 0)
    """Rows and columns of the part of each window that is trained on, around the head and at random within that; (0,
    0) uses the whole slice. Half of a head CT is air, from which there is little to learn."""
    ema: float = 0.0
    """Relative width of the average of weights that is saved at the end, in (0, 0.28); 0 chooses it by validation."""
    balance: bool = True
    """Balance the loss over noise levels by a learned uncertainty (EDM2)."""
    micro_batch: int = 0
    """Windows that go through the network at once; 0 uses a process's whole share of the batch. Fewer need less
    memory and give the same step, up to rounding."""
    fit_memory: bool = False
    """If the device's memory cannot hold that many windows at once, continue with as many as fit."""
    validation_windows: int = 32
    """Windows in a validation."""
    core: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the network core: "auto" (bfloat16 where the device has it), "float32" or "bfloat16"."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How processes share the work: "ddp" or, for networks too large for one device, "fsdp"."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the network's blocks: "auto" does so on CUDA; takes a minute at the start."""

    @property
    def whole(self) -> bool:
        """Whether a window is a whole head."""
        return self.network == "unet3d"

    @property
    def grain(self) -> int:
        """Store pixels whose multiple the first row and column of a part are: whole pixels of every level."""
        return self.pool * math.lcm(self.unet.fold, self.above or 1)

    def check(self) -> None:
        super().check()
        for name, least in (("slices", 2), ("pool", 1), ("above", 0), ("validation_windows", 1), ("micro_batch", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{type(self).__name__}.{name}={getattr(self, name)}: must be {least} or more")
        if not 0 < self.sigma.sigma_min < self.sigma.sigma_max:
            raise UserError(
                f"SigmaDistribution.sigma_min={self.sigma.sigma_min:g}, "
                f"SigmaDistribution.sigma_max={self.sigma.sigma_max:g}: "
                "must be above 0, and the first below the second"
            )
        if self.whole and (self.task.joint or self.position or self.above or any(self.crop)):
            raise UserError(
                "DenoiserTraining.network=unet3d: trains on whole heads; leave out WindowTask.joint, "
                "DenoiserTraining.above and DenoiserTraining.crop, and give "
                "DenoiserTraining.position=False"
            )
        if not 0 <= self.ema < 0.28:
            raise UserError(
                f"DenoiserTraining.ema={self.ema:g}: must lie in (0, 0.28), or be 0 to choose it by validation"
            )


@dataclass(frozen=True, kw_only=True)
class ICNetTraining(RunSettings):
    """Settings of IC-Net training.

    The network has no norms: four times the default rate silences most of its encoder in a thousand steps, at times all
    of it.
    """

    network: ICNetConfig = field(default_factory=ICNetConfig)
    """Shape of the network."""
    recipe: Literal["offset", "paper"] = "offset"
    """Distortion to undo: "offset" changes contrast, μ in [0.7, 1.3], and shifts by up to 20 HU; "paper" changes
    contrast only."""
    neighbour_error_hu: float = 1.0
    """Standard deviation in HU of an offset given to the neighbour, and of a change of contrast that is as large at
    100 HU from the mean, in the "offset" recipe. In a chain the neighbour is itself only calibrated: a network that
    trusts it fully passes every error on, while one trained with this returns to what heads look like."""
    slight: float = 0.7
    """Share of slices distorted only a tenth as much, in the "offset" recipe. A good generator's slices are already
    nearly right: a network that has seen only large distortions finds one in them and moves them."""
    both_ways: bool = True
    """Use the slice below as the known neighbour as often as the one above, for chains that run upward from a seed
    slice; the paper's chain runs downward only."""
    steps: int = 4000
    batch: int = 8
    lr: float = 5e-4
    warmup: float = 0.05
    cooldown: float = 0.95
    air_pairs: float = 0.03
    """Share of pairs in which the neighbour is air and the slice is not distorted, so that the first slice of a
    chain, which has nothing to be compared with, is left alone."""
    least_tissue: float = 0.02
    """Smallest share of a slice's voxels inside the window, in both slices of a pair; emptier pairs are dropped."""
    validation_pairs: int = 128
    """Pairs of the validation split, the same at every validation."""

    def check(self) -> None:
        super().check()
        if not self.validation_pairs > 0:
            raise UserError(f"ICNetTraining.validation_pairs={self.validation_pairs}: must be above 0")
        if not self.neighbour_error_hu >= 0:
            raise UserError(f"ICNetTraining.neighbour_error_hu={self.neighbour_error_hu}: must not be below 0")
        if not 0 <= self.slight <= 1:
            raise UserError(f"ICNetTraining.slight={self.slight}: must lie in [0, 1]")
        for name in ("air_pairs", "least_tissue"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{type(self).__name__}.{name}={getattr(self, name)}: must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class SliceVAETraining(RunSettings):
    """Settings of the slice VAE's training; defaults as published, except for the batch (published: 128)."""

    network: SliceVAEConfig = field(default_factory=SliceVAEConfig)
    """Shape of the network."""
    scale: HUScale = field(default_factory=HUScale)
    """Window and companding of the HU scale."""
    kl: float = 0.2
    """Weight of the divergence beside the squared error summed over a slice's pixels."""
    steps: int = 20000
    batch: int = 32
    warmup: float = 0.0
    cooldown: float = 0.0
    clip: float = 1e4
    heads: int = 400
    """Largest number of volumes that the columns are fitted to."""
    validation_slices: int = 64
    """Slices in a validation."""

    def check(self) -> None:
        super().check()
        for name, least in (("batch", 2), ("heads", 1), ("validation_slices", 1)):
            if getattr(self, name) < least:
                why = " (batch norm)" if name == "batch" else ""
                raise UserError(f"{type(self).__name__}.{name}={getattr(self, name)}: must be {least} or more{why}")
        if not self.kl >= 0:
            raise UserError(f"SliceVAETraining.kl={self.kl}: must not be below 0")
        shape = self.network
        if not shape.channels or min(shape.channels) < 1 or shape.latent < 1 or shape.components < 1:
            raise UserError(
                "SliceVAEConfig.channels, SliceVAEConfig.latent, SliceVAEConfig.components: must be above 0"
            )


@dataclass(frozen=True, kw_only=True)
class GANTraining(RunSettings):
    """Settings of a GAN's training."""

    network: Literal["stylegan2", "stylegan3"] = "stylegan2"
    """Generator: "stylegan2" or "stylegan3" (alias-free)."""
    stylegan2: StyleGAN2Config = field(default_factory=StyleGAN2Config)
    """Shape of StyleGAN2's generator."""
    stylegan3: StyleGAN3Config = field(default_factory=StyleGAN3Config)
    """Shape of StyleGAN3's generator."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Shape of the discriminator."""
    scale: HUScale = field(default_factory=HUScale)
    """Window and companding of the HU scale."""
    steps: int = 20000
    lr: float = 0.0
    """Learning rate of Adam for the generator; 0 uses the published one (0.002; 0.0025 for StyleGAN3)."""
    lr_discriminator: float = 0.0
    """Learning rate of Adam for the discriminator; 0 uses the published one (0.002)."""
    warmup: float = 0.0
    cooldown: float = 0.0
    clip: float = 1e6
    """Largest norm of a network's gradient (published: none)."""
    validations: int = field(default=0, metadata={"derived": True})
    """A GAN has none."""
    ema_images: float = 5000.0
    """Half-life, in slices seen, of the moving average of weights that is saved."""
    r1: float = 0.0
    """Weight of the R1 penalty; 0 uses 0.0002 pixels / batch."""
    r1_every: int = 16
    """Steps between R1 penalties."""
    path: float = 2.0
    """Weight of the path length penalty (StyleGAN2 only)."""
    path_every: int = 4
    """Steps between path length penalties."""
    mixing: float = 0.9
    """Share of slices made of two latents (StyleGAN2 only)."""
    ada_target: float = 0.6
    """Overfitting, mean sign of the discriminator on real slices, at which augmentation is held; 0 augments nothing."""
    ada_images: int = 500_000
    """Slices seen over which augmentation can go from never to always."""
    flip: bool = False
    """Mirror slices left to right at random (the paper augments nothing)."""

    @property
    def rates(self) -> tuple[float, float]:
        """Learning rates of generator and discriminator."""
        return self.lr or (0.0025 if self.network == "stylegan3" else 0.002), self.lr_discriminator or 0.002

    def check(self) -> None:
        RunSettings.check(replace(self, lr=self.rates[0]))
        for name in ("ema_images", "r1_every", "path_every", "ada_images"):
            if not getattr(self, name) > 0:
                raise UserError(f"{type(self).__name__}.{name}={getattr(self, name)}: must be above 0")
        for name in ("lr_discriminator", "r1", "path"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{type(self).__name__}.{name}={getattr(self, name)}: must not be below 0")
        for name in ("mixing", "ada_target"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{type(self).__name__}.{name}={getattr(self, name)}: must lie in [0, 1]")
        if self.network == "stylegan3" and self.stylegan3.layers < 4:
            raise UserError(f"StyleGAN3Config.layers={self.stylegan3.layers}: needs 4 or more")
