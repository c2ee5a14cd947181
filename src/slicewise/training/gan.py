"""Train StyleGAN2 or StyleGAN3 on single slices, with adaptive discriminator augmentation.

Every step's slices, latents, noise and augmentations are functions of (seed, step, sample), so that a run split over
processes sees what one process with the whole batch would, and a resumed run continues bit for bit. Regularisers run
every few steps as steps of their own, with Adam corrected for them (Karras et al. 2020, appendix B).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slicewise.baselines import ada
from slicewise.baselines.discriminator import Discriminator
from slicewise.baselines.gan_loss import (
    discriminator_loss,
    generator_loss,
    gradient_norm2,
    path_lengths,
    r1_weight,
)
from slicewise.baselines.sampling import Baseline, draw_volume, slice_noise
from slicewise.baselines.stylegan2 import StyleGAN2
from slicewise.baselines.stylegan3 import StyleGAN3
from slicewise.data.store import Store
from slicewise.errors import UserError
from slicewise.hu import WHOLE
from slicewise.random import AUGMENT, LATENT, Draws
from slicewise.runtime import Process, processes
from slicewise.training import ema
from slicewise.training.ema import EMA
from slicewise.training.run import run, training_heads
from slicewise.training.settings import GANTraining
from slicewise.training.slices import Slices, recipe_of

# Passes of a step, part of the key of their draws: no two share latents or augmentations.
_D, _G, _PATH, _REAL, _R1 = range(5)
_ADA_EVERY = 4
_PATH_DECAY = 0.99
Network = TypeVar("Network", bound=nn.Module)


def build(settings: GANTraining, size: int) -> tuple[StyleGAN2 | StyleGAN3, Discriminator]:
    """Generator and discriminator for slices of `size` pixels, with fresh weights; `UserError` for a size that they
    cannot have."""
    smallest = 16 if settings.network == "stylegan3" else 8
    if size < smallest or size & (size - 1):
        raise UserError(
            f"slices of {size} pixels: {settings.network} needs a power of two, {smallest} or more; prepare another "
            "size"
        )
    generator: StyleGAN2 | StyleGAN3
    if settings.network == "stylegan2":
        generator = StyleGAN2(replace(settings.stylegan2, size=size))
    else:
        generator = StyleGAN3(replace(settings.stylegan3, size=size))
    return generator, Discriminator(replace(settings.discriminator, size=size))


def adam(parameters: Iterable[nn.Parameter], lr: float, every: int = 0) -> torch.optim.Adam:
    """Adam with β = (0, 0.99); with a regulariser in a step of its own after `every` steps, rate and β are those of
    every/(every + 1) of a step, so that k + 1 steps move as far as k would without it."""
    share = every / (every + 1) if every else 1.0
    return torch.optim.Adam(parameters, lr=lr * share, betas=(0.0, 0.99**share), eps=1e-8, fused=True)


def train_gan(store: Store, out: Path, settings: GANTraining | None = None) -> Path:
    """Train on a prepared store and return the generator's averaged weights, out/weights.safetensors.

    `out` is a run folder (see `run`); stats.jsonl holds loss_g, loss_d, the sign of real logits, the probability of
    augmentation, r1 and path_length. Raises `UserError` for a store that is empty or of no size for it, and as `run`
    does; KeyboardInterrupt, with the state saved, after Ctrl-C or SIGTERM.
    """
    settings = settings or GANTraining()
    settings.check()
    with processes(settings.device) as process:
        if settings.batch % process.world:
            raise UserError(
                f"GANTraining.batch={settings.batch} is not divisible by {process.world} processes; make it a multiple"
            )
        return run(GANTrainer(store, out, settings, process), out, "train-gan", process)


class GANTrainer:
    """Both networks of a GAN in training, as the loop takes them (see `run.Trainer`).

    What is adapted on the way, the probability of augmentation and the mean path length, lies on the device too.
    """

    exported = "generator"
    width: float | None = None
    probability: Tensor
    sign: Tensor
    path_mean: Tensor

    def __init__(self, store: Store, out: Path, settings: GANTraining, process: Process) -> None:
        self.settings, self.process = settings, process
        self.name: str = settings.network
        # The shape of the generator that is not trained decides nothing.
        self.free = frozenset({"stylegan2", "stylegan3"} - {settings.network})
        self.heads = training_heads(store, out, process)
        self.slices = Slices(self.heads, settings.scale)
        self.samples = process.share(settings.batch)
        torch.manual_seed(settings.seed)
        made, judge = build(settings, self.heads.side)
        self.generator, self.discriminator = _placed(made, process), _placed(judge, process)
        self.networks: dict[str, nn.Module] = {"generator": self.generator, "discriminator": self.discriminator}
        self.has_path = settings.path > 0 and settings.network == "stylegan2"
        rate_g, rate_d = settings.rates
        self.g_adam = adam(made.parameters(), rate_g, settings.path_every if self.has_path else 0)
        self.d_adam = adam(judge.parameters(), rate_d, settings.r1_every)
        self.optimizers: Sequence[torch.optim.Optimizer] = [self.g_adam, self.d_adam]
        self.average: EMA | None = EMA(made.parameters(), [ema.exponential(settings.ema_images / settings.batch)])
        self.r1 = settings.r1 or r1_weight(self.heads.side, settings.batch)
        self.remember({"probability": 0.0, "sign": 0.0, "path_mean": 0.0})

    def step(self, step: int) -> dict[str, Tensor]:
        s, g, d = self.settings, self.generator, self.discriminator
        real = self.slices.batch(s.seed, step, self.samples, s.flip)
        generated = self.generate(step, _G)
        loss_g = generator_loss(d(self._augmented(generated, step, _G)))
        self._update(g, self.g_adam, loss_g)
        seen = {"loss_g": loss_g.detach()}
        if self.has_path and step % s.path_every == 0:
            seen["path_length"] = self._path_step(step)
        with torch.no_grad():
            generated = self.generate(step, _D)
        # Real and generated apart, since their spread within a group must not mix.
        logits_real = d(self._augmented(real, step, _REAL))
        logits_generated = d(self._augmented(generated, step, _D))
        loss_d = discriminator_loss(logits_real, logits_generated)
        self._update(d, self.d_adam, loss_d)
        seen["loss_d"] = loss_d.detach()
        if step % s.r1_every == 0:
            # At what the discriminator sees: the augmented slices are its real data.
            images = self._augmented(real, step, _R1).detach().requires_grad_(True)
            penalty = gradient_norm2(d(images), images).mean()
            self._update(d, self.d_adam, self.r1 / 2 * s.r1_every * penalty)
            seen["r1"] = penalty.detach()
        sign = ada.overfitting_sign(logits_real.detach())
        self._adapt(sign, step)
        self._average_buffers()
        return {**seen, "sign": sign, "augment": self.probability}

    def generate(self, step: int, part: int) -> Tensor:
        """Slices (B, 1, H, W) of this process for one pass of a step."""
        styles, noise = self._styles(step, part, self.samples)
        return self.generator.synthesise(styles, noise)

    def _styles(self, step: int, part: int, samples: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        g, s = self.generator, self.settings
        draws = Draws(s.seed, samples, part, step, LATENT, self.process.device)
        z, *noise = slice_noise(g, draws)
        if isinstance(g, StyleGAN3) or s.mixing == 0:
            return g.styles(z), noise
        other, count = draws.normal(g.config.latent), g.style_count
        cross = torch.where(draws.uniform(1) < s.mixing, 1 + draws.integers(count - 1), count)
        return g.styles(z, other, cross[:, 0]), noise

    def _augmented(self, x: Tensor, step: int, part: int) -> Tensor:
        if self.settings.ada_target == 0:
            return x
        draws = Draws(self.settings.seed, self.samples, part, step, AUGMENT, self.process.device)
        return ada.augment(x, *ada.draw(draws, self.probability, self.heads.side))

    def _path_step(self, step: int) -> Tensor:
        s, side = self.settings, self.heads.side
        # Half the slices are enough for path lengths (Karras et al. 2020, appendix B).
        samples = [k for k in self.samples if k % 2 == 0] or self.samples
        styles, noise = self._styles(step, _PATH, samples)
        images = self.generator.synthesise(styles, noise)
        draws = Draws(s.seed, samples, _PATH, step, AUGMENT, self.process.device)
        lengths = path_lengths(images, styles, draws.normal(side * side).view_as(images))
        mean = lengths.detach().mean()
        self.path_mean = self.path_mean * _PATH_DECAY + self.process.mean(mean) * (1 - _PATH_DECAY)
        self._update(self.generator, self.g_adam, s.path * s.path_every * (lengths - self.path_mean).square().mean())
        return mean

    def _update(self, module: nn.Module, optimizer: torch.optim.Adam, loss: Tensor) -> None:
        """One optimiser step of one network on the mean gradient of all processes."""
        parameters = list(module.parameters())
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)
        if self.process.world > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.process.world
        torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip)
        optimizer.step()

    def _adapt(self, sign: Tensor, step: int) -> None:
        s = self.settings
        if s.ada_target == 0:
            return
        self.sign = self.sign + self.process.mean(sign)
        if (step + 1) % _ADA_EVERY == 0:
            mean, seen = self.sign / _ADA_EVERY, s.batch * _ADA_EVERY
            self.probability = ada.adjusted(self.probability, mean, s.ada_target, seen, s.ada_images)
            self.sign = torch.zeros_like(self.sign)

    def _average_buffers(self) -> None:
        """Moving averages of magnitudes are linear in what they average: the mean over processes is the whole's."""
        if self.process.world > 1:
            for module in self.generator.modules():
                power = getattr(module, "power", None)
                if isinstance(power, Tensor):
                    dist.all_reduce(power)
                    power /= self.process.world

    def model(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        recipe = recipe_of(self.heads, self.settings.scale)
        about = {"recipe": recipe.to_dict(), "training": asdict(self.settings)}
        return self.settings.network, asdict(self.generator.config), about

    def validate(self) -> dict[str, Any]:
        """Nothing: a GAN has no error to measure (see `slicewise evaluate`)."""
        return {}

    def sample(self, path: Path) -> None:
        """A sheet of slices."""
        from slicewise.reporting.montage import slice_sheet
        from slicewise.volume import Volume

        recipe = recipe_of(self.heads, self.settings.scale)
        hu = draw_volume(Baseline(self.generator.eval(), recipe, {"kind": self.settings.network}), 0, 0, 24)
        self.generator.train()
        if not self.process.is_main:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        slice_sheet(Volume.regular(hu, recipe.spacing_mm), path, WHOLE, path.stem)

    def memory(self) -> dict[str, Any]:
        held = {"probability": self.probability, "sign": self.sign, "path_mean": self.path_mean}
        return {name: value.item() for name, value in held.items()}

    def remember(self, memory: Mapping[str, Any]) -> None:
        names = ("probability", "sign", "path_mean")
        at = torch.tensor([memory[name] for name in names], dtype=torch.float64, device=self.process.device)
        self.probability, self.sign, self.path_mean = at.unbind()

    def finish(self) -> None:
        """Nothing is left to do."""


def _placed(network: Network, process: Process) -> Network:
    return network.to(process.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
