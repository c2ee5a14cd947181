"""Train StyleGAN2 or StyleGAN3 on single slices, with adaptive discriminator augmentation.

Every step's slices, latents, noise and augmentations are functions of (seed, step, sample), so that a run split over
processes sees what one process with the whole batch would, and a resumed run goes on bit for bit. Regularisers run
every few steps as steps of their own, with Adam corrected for them (Karras et al. 2020, appendix B).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from rich.progress import Progress, TextColumn
from torch import Tensor, nn

from slicewise.baselines import ada
from slicewise.baselines.discriminator import Discriminator, DiscriminatorConfig
from slicewise.baselines.gan_loss import (
    discriminator_loss,
    generator_loss,
    gradient_norm2,
    path_lengths,
    r1_weight,
)
from slicewise.baselines.sampling import Baseline, draw_volume, slice_noise
from slicewise.baselines.stylegan2 import StyleGAN2, StyleGAN2Config
from slicewise.baselines.stylegan3 import StyleGAN3, StyleGAN3Config
from slicewise.checkpoint import WEIGHTS, save_model
from slicewise.data.store import Store
from slicewise.diffusion.noise import AUGMENT, LATENT, generator
from slicewise.errors import UserError
from slicewise.hu import HUScale
from slicewise.io.tensors import load_tensors, save_tensors
from slicewise.settings import write_settings
from slicewise.training.ema import EMA
from slicewise.training.engine import (
    Process,
    StatsLog,
    StopRequest,
    any_process,
    mean_of_processes,
    processes,
    write_environment,
)
from slicewise.training.slices import training_slices
from slicewise.training.state import check_same, finite, identity, pack, unpack

# Settings that a started run may change.
_FREE = ("steps", "save_every", "sample_every", "device")
# Passes of a step, part of the key of their draws: no two share latents or augmentations.
_D, _G, _PATH, _REAL, _R1 = range(5)
_ADA_EVERY = 4
Network = TypeVar("Network", bound=nn.Module)
_PATH_DECAY = 0.99


@dataclass(frozen=True)
class GANTraining:
    """Settings of a GAN's training.

    Attributes
    ----------
    network : "stylegan2" or "stylegan3" (alias-free).
    stylegan2, stylegan3 : shape of the chosen generator.
    discriminator : shape of the discriminator.
    scale : window and companding of the HU scale.
    steps : steps of both networks.
    batch : slices a step, over all processes together.
    lr, lr_discriminator : learning rates of Adam; 0 takes the published ones (0.002; 0.0025 for StyleGAN3's generator).
    ema_images : half-life, in slices seen, of the moving average of weights that is saved.
    r1 : weight of the R1 penalty; 0 takes 0.0002 pixels / batch.
    r1_every : steps between R1 penalties.
    path : weight of the path length penalty (StyleGAN2 only).
    path_every : steps between path length penalties.
    mixing : share of slices made of two latents (StyleGAN2 only).
    ada_target : overfitting, mean sign of the discriminator on real slices, at which augmentation is held; 0 augments
        nothing.
    ada_images : slices seen in which augmentation can go from never to always.
    flip : mirror slices left to right at random (the paper augments nothing).
    seed : of weights, order, latents and noise.
    save_every, sample_every : steps between checkpoints, and between sheets of samples (0 = never).
    device : "auto", "cpu" or "cuda".
    """

    network: Literal["stylegan2", "stylegan3"] = "stylegan2"
    stylegan2: StyleGAN2Config = field(default_factory=StyleGAN2Config)
    stylegan3: StyleGAN3Config = field(default_factory=StyleGAN3Config)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    scale: HUScale = field(default_factory=HUScale)
    steps: int = 20000
    batch: int = 16
    lr: float = 0.0
    lr_discriminator: float = 0.0
    ema_images: float = 5000.0
    r1: float = 0.0
    r1_every: int = 16
    path: float = 2.0
    path_every: int = 4
    mixing: float = 0.9
    ada_target: float = 0.6
    ada_images: int = 500_000
    flip: bool = False
    seed: int = 0
    save_every: int = 500
    sample_every: int = 0
    device: str = "auto"


def check_settings(settings: GANTraining, size: int) -> None:
    """`UserError` naming the flag of a setting that cannot work."""
    for name in ("steps", "batch", "ema_images", "r1_every", "path_every", "ada_images"):
        if not getattr(settings, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: must be above zero")
    for name in ("lr", "lr_discriminator", "r1", "path", "save_every", "sample_every"):
        if getattr(settings, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: must not be below zero")
    for name in ("mixing", "ada_target"):
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: must lie in [0, 1]")
    smallest = 16 if settings.network == "stylegan3" else 8
    if size < smallest or size & (size - 1):
        raise UserError(
            f"slices of {size} pixels: {settings.network} takes a power of two from {smallest} on; prepare another size"
        )
    if settings.network == "stylegan3" and settings.stylegan3.layers < 4:
        raise UserError(f"--stylegan3.layers {settings.stylegan3.layers}: needs 4 or more")


def build(settings: GANTraining, size: int) -> tuple[StyleGAN2 | StyleGAN3, Discriminator]:
    """Generator and discriminator for slices of `size` pixels, with fresh weights."""
    generator_network: StyleGAN2 | StyleGAN3
    if settings.network == "stylegan2":
        generator_network = StyleGAN2(replace(settings.stylegan2, size=size))
    else:
        generator_network = StyleGAN3(replace(settings.stylegan3, size=size))
    return generator_network, Discriminator(replace(settings.discriminator, size=size))


def adam(parameters: Any, lr: float, every: int = 0) -> torch.optim.Adam:
    """Adam with β = (0, 0.99); with a regulariser in a step of its own after `every` steps, rate and β are those of
    every/(every + 1) of a step, so that k + 1 steps move as far as k would without it."""
    share = every / (every + 1) if every else 1.0
    return torch.optim.Adam(parameters, lr=lr * share, betas=(0.0, 0.99**share), eps=1e-8)


@dataclass
class Trainer:
    """Both networks of a run in one process, and one step of each; what `state` gives is all that a run is."""

    settings: GANTraining
    generator: StyleGAN2 | StyleGAN3
    discriminator: Discriminator
    size: int
    process: Process = field(default_factory=lambda: Process(0, 1, torch.device("cpu")))
    probability: float = 0.0
    sign_sum: float = 0.0
    path_mean: float = 0.0

    def __post_init__(self) -> None:
        s = self.settings
        self.has_path = s.network == "stylegan2" and s.path > 0
        default = 0.0025 if s.network == "stylegan3" else 0.002
        self.g_adam = adam(self.generator.parameters(), s.lr or default, s.path_every if self.has_path else 0)
        self.d_adam = adam(self.discriminator.parameters(), s.lr_discriminator or 0.002, s.r1_every)
        self.ema = EMA(self.generator.parameters(), 0.5 ** (s.batch / s.ema_images))
        self.r1 = s.r1 or r1_weight(self.size, s.batch)
        self.samples = self.process.share(s.batch)
        self.modules: dict[str, nn.Module] = {"generator": self.generator, "discriminator": self.discriminator}
        self.adams = {"generator": self.g_adam, "discriminator": self.d_adam}

    def step(self, real: Tensor, step: int) -> dict[str, float]:
        """Train both on x (B, 1, H, W) of this process; returns losses and what else the log shows."""
        s, g, d = self.settings, self.generator, self.discriminator
        generated = self.generate(step, _G)
        loss_g = generator_loss(d(self._augmented(generated, step, _G)))
        self._update(g, self.g_adam, loss_g)
        seen = {"loss_g": float(loss_g.detach())}
        if self.has_path and step % s.path_every == 0:
            seen["path_length"] = self._path_step(step)
        with torch.no_grad():
            generated = self.generate(step, _D)
        # Real and generated apart, since their spread within a group must not mix.
        logits_real = d(self._augmented(real, step, _REAL))
        logits_generated = d(self._augmented(generated, step, _D))
        loss_d = discriminator_loss(logits_real, logits_generated)
        self._update(d, self.d_adam, loss_d)
        seen["loss_d"] = float(loss_d.detach())
        if step % s.r1_every == 0:
            # At what the discriminator sees: the augmented slices are its real data.
            images = self._augmented(real, step, _R1).detach().requires_grad_(True)
            penalty = gradient_norm2(d(images), images).mean()
            self._update(d, self.d_adam, self.r1 / 2 * s.r1_every * penalty)
            seen["r1"] = float(penalty.detach())
        self._adapt(logits_real, step)
        self._average_buffers()
        self.ema.update(g.parameters(), step)
        return {name: mean_of_processes(value, self.process) for name, value in seen.items()}

    def generate(self, step: int, part: int) -> Tensor:
        """Slices (B, 1, H, W) of this process for one pass of a step."""
        styles, noise = self._styles(step, part, self.samples)
        return self.generator.synthesise(styles, noise)

    def _styles(self, step: int, part: int, samples: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        g, s = self.generator, self.settings
        rngs = [generator(s.seed, sample, step, part, LATENT) for sample in samples]
        z, *noise = self._columns([slice_noise(g, rng) for rng in rngs])
        if isinstance(g, StyleGAN3) or s.mixing == 0:
            return g.styles(z), noise
        (other,) = self._columns([[rng.standard_normal(g.config.latent, np.float32)] for rng in rngs])
        count = g.style_count
        cross = [int(rng.integers(1, count)) if rng.random() < s.mixing else count for rng in rngs]
        return g.styles(z, other, torch.tensor(cross, device=z.device)), noise

    def _columns(self, rows: list[list[np.ndarray]]) -> list[Tensor]:
        return [torch.from_numpy(np.stack(column)).to(self.process.device) for column in zip(*rows)]

    def _augmented(self, x: Tensor, step: int, part: int) -> Tensor:
        if self.probability == 0.0:
            return x
        rngs = (generator(self.settings.seed, sample, step, part, AUGMENT) for sample in self.samples)
        return ada.augment(x, [ada.draw(rng, self.probability, self.size) for rng in rngs])

    def _path_step(self, step: int) -> float:
        s = self.settings
        # Half the slices are enough for path lengths (Karras et al. 2020, appendix B).
        samples = [k for k in self.samples if k % 2 == 0] or self.samples
        styles, noise = self._styles(step, _PATH, samples)
        images = self.generator.synthesise(styles, noise)
        rngs = (generator(s.seed, sample, step, _PATH, AUGMENT) for sample in samples)
        directions = [rng.standard_normal((1, self.size, self.size), np.float32) for rng in rngs]
        lengths = path_lengths(images, styles, torch.from_numpy(np.stack(directions)).to(images.device))
        mean = mean_of_processes(float(lengths.detach().mean()), self.process)
        self.path_mean = self.path_mean * _PATH_DECAY + mean * (1 - _PATH_DECAY)
        self._update(self.generator, self.g_adam, s.path * s.path_every * (lengths - self.path_mean).square().mean())
        return mean

    def _update(self, module: nn.Module, optimizer: torch.optim.Adam, loss: Tensor) -> None:
        """One optimiser step of one network on the mean gradient of all processes."""
        parameters = list(module.parameters())
        optimizer.zero_grad(set_to_none=True)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients):
            if gradient is not None and self.process.world > 1:
                dist.all_reduce(gradient)
                gradient = gradient / self.process.world
            parameter.grad = gradient
        optimizer.step()

    def _adapt(self, logits_real: Tensor, step: int) -> None:
        s = self.settings
        if s.ada_target == 0:
            return
        self.sign_sum += mean_of_processes(float(ada.overfitting_sign(logits_real.detach())), self.process)
        if (step + 1) % _ADA_EVERY == 0:
            seen = s.batch * _ADA_EVERY
            self.probability = ada.adjusted(
                self.probability, self.sign_sum / _ADA_EVERY, s.ada_target, seen, s.ada_images
            )
            self.sign_sum = 0.0

    def _average_buffers(self) -> None:
        """Moving averages of magnitudes are linear in what they average: the mean over processes is the whole's."""
        if self.process.world > 1:
            for module in self.generator.modules():
                power = getattr(module, "power", None)
                if isinstance(power, Tensor):
                    dist.all_reduce(power)
                    power /= self.process.world

    def state(self) -> dict[str, Tensor]:
        tensors = pack(self.modules, self.adams)
        for (name, _), average in zip(self.generator.named_parameters(), self.ema.averages):
            tensors[f"ema.{name}"] = average.clone()
        scalars = [self.probability, self.sign_sum, self.path_mean]
        return {**tensors, "scalars": torch.tensor(scalars, dtype=torch.float64)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        unpack(tensors, self.modules, self.adams)
        for (name, _), average in zip(self.generator.named_parameters(), self.ema.averages):
            average.copy_(tensors[f"ema.{name}"])
        self.probability, self.sign_sum, self.path_mean = tensors["scalars"].tolist()

    def averaged_weights(self) -> dict[str, Tensor]:
        """The generator's state with averaged parameters: what is saved to be used."""
        names = [name for name, _ in self.generator.named_parameters()]
        return {**self.generator.state_dict(), **dict(zip(names, self.ema.averages))}


def train_gan(store: Store, out: Path, settings: GANTraining | None = None) -> Path:
    """Train on a prepared store and return the generator's averaged weights, out/weights.safetensors.

    The run folder holds config.toml, stats.jsonl (step, loss_g, loss_d, sign of real logits, augmentation probability,
    r1, path_length, images_per_s), env.json, state/ and samples/; a run that was stopped goes on bit for bit.

    Raises `UserError` for a store that is empty or of no size for it, a folder that holds another run, and a loss that
    is no number (the last good checkpoint is kept); KeyboardInterrupt, with the state saved, after Ctrl-C or SIGTERM.
    """
    settings = settings or GANTraining()
    slices, recipe = training_slices(store, settings.scale)
    check_settings(settings, recipe.size)
    with processes(settings.device) as process:
        if settings.batch % process.world:
            raise UserError(
                f"--batch {settings.batch} does not divide over {process.world} processes; make it a multiple"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            made, judge = build(settings, recipe.size)
        trainer = Trainer(settings, _placed(made, process), _placed(judge, process), recipe.size, process)
        # The shape of the generator that is not trained decides nothing.
        free = {*_FREE, *({"stylegan2", "stylegan3"} - {settings.network})}
        state, first, same = out / "state" / "state.safetensors", 0, identity(settings, free, store)
        if state.is_file():
            tensors, meta = load_tensors(state)
            check_same(state, meta, same)
            trainer.load_state(tensors)
            first = int(meta["step"])
        log = StatsLog(out / "stats.jsonl", first) if process.is_main else None
        if process.is_main:
            write_settings(out / "config.toml", "train-gan", settings)
            write_environment(out)
        config = asdict(trainer.generator.config)
        meta = {"recipe": recipe.to_dict(), "training": asdict(settings), "data": store.fingerprint}

        def diverged(step: int) -> UserError:
            return UserError(
                f"{out}: a loss is not finite at step {step}; the last good checkpoint is kept, resume in another "
                "--out with a smaller --lr or a larger --r1"
            )

        def save(step: int) -> None:
            if not finite(trainer.generator, trainer.discriminator):
                raise diverged(step)
            if process.is_main:
                save_model(out / WEIGHTS, settings.network, config, trainer.averaged_weights(), {**meta, "step": step})
                # The state goes last: after a crash between the two, the resumed run comes by here again.
                save_tensors(state, trainer.state(), {**same, "step": step})

        def sample(step: int) -> None:
            network, _ = build(settings, recipe.size)
            network.load_state_dict(trainer.averaged_weights())
            baseline = Baseline(network.to(process.device).eval(), recipe, {"kind": settings.network})
            _sheet(draw_volume(baseline, 0, 0, 24), recipe.spacing_mm, out / "samples" / f"{step:07d}.png")

        columns = (*Progress.get_default_columns(), TextColumn("{task.fields[shown]}"))
        with StopRequest() as stop, Progress(*columns, transient=True, disable=not process.is_main) as bar:
            task = bar.add_task(settings.network, total=settings.steps, completed=first, shown="")
            begun = time.monotonic()
            for step in range(first, settings.steps):
                real = slices.batch(settings.seed, step, trainer.samples, settings.flip).to(process.device)
                seen = trainer.step(real, step)
                if not all(map(math.isfinite, seen.values())):
                    raise diverged(step)
                done = step + 1
                rate = (done - first) * settings.batch / (time.monotonic() - begun)
                bar.update(task, completed=done, shown=f"p {trainer.probability:.2f}, {rate:.1f} images/s")
                if log and ("r1" in seen or done % 20 == 0 or done == settings.steps):
                    rounded = {name: round(value, 6) for name, value in seen.items()}
                    log.write(step=done, **rounded, augment=trainer.probability, images_per_s=round(rate, 2))
                stopping = any_process(stop.requested, process) and done < settings.steps
                if done == settings.steps or stopping or (settings.save_every and done % settings.save_every == 0):
                    save(done)
                if stopping:
                    raise KeyboardInterrupt
                if process.is_main and settings.sample_every and done % settings.sample_every == 0:
                    sample(done)
        return out / WEIGHTS


def _placed(network: Network, process: Process) -> Network:
    return network.to(process.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _sheet(hu: np.ndarray, spacing: tuple[float, float, float], path: Path) -> None:
    """A sheet of slices, to see how training goes."""
    from slicewise.hu import WHOLE
    from slicewise.montage import slice_sheet
    from slicewise.volume import Volume

    path.parent.mkdir(parents=True, exist_ok=True)
    slice_sheet(Volume.regular(hu, spacing), path, WHOLE, path.stem)
