"""Training of IC-Net, self-supervised on real neighbouring slices (Jeong et al. 2023, section 2.3, equations 3 and 4).

A real slice x^{t+1} is distorted, x̂ = (x^{t+1} - mean)·μ + mean (+ offset), and the network, seeing x̂ and x^t, learns
to undo it. Where the paper leaves things open:

- the mean is over the slice's voxels inside the window (-150, 150) HU: the soft tissue, neither air nor bone;
- only those voxels are distorted, as only those are calibrated afterwards; the window then clips what has left it.
  What is clipped cannot be restored: in fat and in blood this is what makes μ = 1.2 and 1.3 hard;
- the error is the mean over the voxels that lie inside the window in the true slice.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress, TextColumn
from torch import Tensor

from slicewise.checkpoint import WEIGHTS, save_model
from slicewise.data.store import Record, Store
from slicewise.errors import UserError, output_errors
from slicewise.hu import ICNET, to_unit
from slicewise.io.tensors import load_tensors, save_tensors
from slicewise.networks.icnet import ICNet, ICNetConfig
from slicewise.settings import write_settings
from slicewise.training.engine import StatsLog, StopRequest, processes, write_environment

RECIPES = ("offset", "paper")
GAIN_RANGE = (0.7, 1.3)
OFFSET_HU = 20.0
# A slight distortion, as a part of a whole one.
SLIGHT = 0.1
_CONTRAST_HU = 100.0
HU_PER_UNIT = (ICNET.hi - ICNET.lo) / 2.0

_AIR_HU = -1024
# Philox keys are (seed, stream); training steps count from 0, so validation takes a number that no step reaches.
_VALIDATION_STREAM = 1 << 62
_MOST_DRAWS = 200


@dataclass(frozen=True)
class ICNetTraining:
    """Settings of IC-Net training.

    Attributes
    ----------
    network : shape of the network.
    recipe : "offset" distorts contrast, μ in [0.7, 1.3], and shifts by up to 20 HU; "paper" distorts contrast only.
    neighbour_error_hu : standard deviation of an offset given to the neighbour, and of a change of contrast that is as
        large at 100 HU from the mean, in the "offset" recipe. In a chain the neighbour is itself only calibrated: a
        network that trusts it wholly hands every error on, one that has seen this comes back to what heads look like.
    slight : share of slices distorted by a tenth of that only, in the "offset" recipe. A good generator's slices are
        nearly right as they come: a network that has seen but large distortions moves those by what it takes for one.
    both_ways : whether the known neighbour is as often the slice below as the one above, for chains that run upward
        from a seed slice; the paper's chain runs downward only.
    steps : optimiser steps.
    batch : slices a step.
    lr : peak learning rate of Adam; rises linearly over `warmup` steps, then falls to zero as a half cosine. The
        network has no norms: four times this rate silences most of its encoder in a thousand steps, at times all of it.
    warmup : steps.
    clip : largest norm of the gradient.
    air_pairs : share of pairs in which the neighbour is air and the slice is not distorted, so that the first slice
        of a chain, which nothing can be compared with, is left alone.
    least_tissue : least share of a slice's voxels inside the window, in both slices of a pair; emptier pairs are
        dropped.
    validate_every : steps between validations, each followed by a checkpoint.
    validation_pairs : pairs of the validation split, the same at every validation.
    log_every : steps between lines in stats.jsonl.
    seed : of initial weights and all draws.
    device : "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", …
    """

    network: ICNetConfig = field(default_factory=ICNetConfig)
    recipe: str = "offset"
    neighbour_error_hu: float = 1.0
    slight: float = 0.7
    both_ways: bool = True
    steps: int = 4000
    batch: int = 8
    lr: float = 5e-4
    warmup: int = 200
    clip: float = 1.0
    air_pairs: float = 0.03
    least_tissue: float = 0.02
    validate_every: int = 500
    validation_pairs: int = 128
    log_every: int = 50
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise UserError(f"--recipe {self.recipe!r} is unknown; choose one of {', '.join(RECIPES)}")
        for name in ("steps", "batch", "lr", "clip", "validate_every", "validation_pairs", "log_every"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be above zero")
        if not self.neighbour_error_hu >= 0:
            raise UserError(f"--neighbour-error-hu {self.neighbour_error_hu}: must not be below zero")
        if not 0 <= self.slight <= 1:
            raise UserError(f"--slight {self.slight}: must lie in [0, 1]")
        for name in ("air_pairs", "least_tissue"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must lie in [0, 1)")


def distort(hu: np.ndarray, gain: np.ndarray | float, offset: np.ndarray | float = 0.0) -> np.ndarray:
    """Equation 3 with an offset: (hu - mean)·gain + mean + offset in the voxels inside (-150, 150) HU, the others kept.

    `hu` (..., H, W) in HU, gain and offset (HU) broadcast against its leading axes; the mean is each slice's own over
    the voxels that change. Returns float64 HU, not clipped.
    """
    hu = np.asarray(hu, np.float64)
    inside = (hu > ICNET.lo) & (hu < ICNET.hi)
    count = np.maximum(inside.sum((-2, -1), keepdims=True), 1)
    mean = np.where(inside, hu, 0.0).sum((-2, -1), keepdims=True) / count
    gain, offset = (np.asarray(v, np.float64)[..., None, None] for v in (gain, offset))
    return np.where(inside, (hu - mean) * gain + mean + offset, hu)


def error_hu(result: np.ndarray, true: np.ndarray) -> float:
    """Mean absolute difference in HU over the voxels whose true value lies inside (-150, 150) HU, both clipped to that
    window; NaN where there are none. The paper's Figure 5 measures IC-Net by it."""
    inside = (true > ICNET.lo) & (true < ICNET.hi)
    difference = np.clip(result, ICNET.lo, ICNET.hi) - true
    return float(np.abs(difference[inside]).mean()) if inside.any() else float("nan")


def draw_batch(
    store: Store, records: tuple[Record, ...], settings: ICNetTraining, stream: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Training pairs, a pure function of (seed, stream): x (count, 2, H, W), [x̂, neighbour], and target
    (count, 1, H, W), float32 in the unit range of the window.

    Raises `UserError` where the volumes hold no pair with enough tissue, or differ in size.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([settings.seed, stream], np.uint64)))
    pairs = [_draw_pair(store, records, settings, rng) for _ in range(count)]
    if len({s.shape for pair in pairs for s in pair}) > 1:
        raise UserError(f"{store.path}: volumes differ in in-plane size; prepare them on one grid (slicewise prepare)")
    target, neighbour = (np.stack(s).astype(np.float64) for s in zip(*pairs))
    gain = rng.uniform(*GAIN_RANGE, count)
    offset = rng.uniform(-OFFSET_HU, OFFSET_HU, count) * (settings.recipe == "offset")
    at_air = rng.random(count) < settings.air_pairs
    drift = rng.normal(size=(2, count)) * settings.neighbour_error_hu * (settings.recipe == "offset")
    part = np.where(rng.random(count) < settings.slight * (settings.recipe == "offset"), SLIGHT, 1.0)
    gain, offset = 1.0 + part * (gain - 1.0), part * offset
    neighbour = distort(neighbour, 1.0 + drift[0] / _CONTRAST_HU, drift[1])
    neighbour[at_air] = _AIR_HU
    distorted = distort(target, np.where(at_air, 1.0, gain), np.where(at_air, 0.0, offset))
    x = np.stack([to_unit(distorted, ICNET), to_unit(neighbour, ICNET)], axis=1)
    return x, to_unit(target, ICNET)[:, None]


def _draw_pair(
    store: Store, records: tuple[Record, ...], settings: ICNetTraining, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A slice and its neighbour, int16 HU (H, W), both with enough tissue."""
    for _ in range(_MOST_DRAWS):
        hu = store.hu(records[rng.integers(len(records))])
        if len(hu) < 2:
            continue
        above = int(rng.integers(len(hu) - 1))
        pair = np.array(hu[above + 1]), np.array(hu[above])
        share = min(np.count_nonzero((s > ICNET.lo) & (s < ICNET.hi)) / s.size for s in pair)
        if share >= settings.least_tissue:
            return pair[::-1] if settings.both_ways and rng.random() < 0.5 else pair
    raise UserError(
        f"{store.path}: {_MOST_DRAWS} draws found no two neighbouring slices with {settings.least_tissue:.0%} soft "
        "tissue; check the volumes, or lower --least-tissue"
    )


def error(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over the voxels whose target lies inside the window; a scalar in unit range (× 150 = HU)."""
    weight = (target.abs() < 1.0).to(target.dtype)
    return (weight * (output - target).abs()).sum() / weight.sum().clamp_min(1.0)


def learning_rate(settings: ICNetTraining, step: int) -> float:
    """Linear warm-up, then half a cosine down to zero after the last step."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))


def train_icnet(
    store: Store, out: Path | str, settings: ICNetTraining | None = None, stop_after: int | None = None
) -> Path:
    """Train IC-Net on a prepared store and return its checkpoint, out/weights.safetensors.

    The folder `out` holds config.toml, stats.jsonl (one JSON object a line: step, loss_hu, val_hu, lr, images_per_s),
    env.json and state/training.safetensors; a run that was stopped goes on from there bit for bit. `stop_after` ends
    this call after that step, for jobs with a time limit. Ctrl-C saves and raises KeyboardInterrupt.

    Raises `UserError` for a store without training or validation volumes, a folder that holds a run with other settings
    or data, and for a loss that is no number (the last good checkpoint stays).
    """
    settings, out = settings or ICNetTraining(), Path(out)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("train-icnet: it takes one process; start it without torchrun")
    records = store.select("train")
    if not records or not store.select("val"):
        raise UserError(
            f"{store.path}: needs at least one volume in each of the splits train and val; prepare more data"
        )
    with output_errors(out):
        (out / "state").mkdir(parents=True, exist_ok=True)
        write_environment(out)
    with processes(settings.device) as process:
        run = _Run.start_or_resume(store, out, settings, process.device)
        write_settings(out / "config.toml", "train-icnet", settings)
        _train(run, records, min(settings.steps, stop_after or settings.steps))
    return out / WEIGHTS


@dataclass
class _Run:
    """All state of a training run: what `save` writes is what `start_or_resume` finds."""

    store: Store
    out: Path
    settings: ICNetTraining
    net: ICNet
    adam: torch.optim.Adam
    step: int
    val_hu: float | None
    saved_step: int = 0

    @staticmethod
    def start_or_resume(store: Store, out: Path, settings: ICNetTraining, device: torch.device) -> "_Run":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            net = ICNet(settings.network)
        net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        run = _Run(store, out, settings, net, torch.optim.Adam(net.parameters(), lr=settings.lr), 0, None)
        if run._state_file.exists():
            run._load(device)
        return run

    @property
    def _state_file(self) -> Path:
        return self.out / "state" / "training.safetensors"

    @property
    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on; the device may change (the bits then do, too)."""
        settings = asdict(self.settings)
        del settings["device"], settings["log_every"]
        return {"settings": settings, "data": self.store.fingerprint}

    def diverged(self) -> UserError:
        kept = f"the checkpoint of step {self.saved_step} is kept" if self.saved_step else "no checkpoint yet"
        return UserError(
            f"{self.out}: the loss is not a number at step {self.step} ({kept}); lower --lr and start anew"
        )

    def save(self) -> None:
        # The last step may have spoilt the weights after its own loss was sound.
        if not all(bool(p.isfinite().all()) for p in self.net.parameters()):
            raise self.diverged()
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{name}"] = self.adam.state[parameter][moment]
        with output_errors(self.out):
            meta = {**self._identity, "step": self.step, "val_mae_hu": self.val_hu, "window_hu": [ICNET.lo, ICNET.hi]}
            save_model(self.out / WEIGHTS, "icnet", asdict(self.settings.network), self.net.state_dict(), meta)
            # The state goes last: after a crash between the two, the resumed run comes by here again.
            save_tensors(self._state_file, tensors, {**self._identity, "step": self.step, "val_hu": self.val_hu})
        self.saved_step = self.step

    def _load(self, device: torch.device) -> None:
        tensors, meta = load_tensors(self._state_file)
        for what, value in self._identity.items():
            if meta.get(what) != json.loads(json.dumps(value)):
                raise UserError(
                    f"{self.out}: holds a run with other {what}; use the same to go on with it, or another --out"
                )
        self.net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
        self.step, self.val_hu = int(meta["step"]), meta["val_hu"]
        self.saved_step = self.step
        for name, parameter in self.net.named_parameters():
            moments = {m: tensors[f"{m}.{name}"].to(device) for m in ("exp_avg", "exp_avg_sq")}
            self.adam.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}


def _train(run: _Run, records: tuple[Record, ...], last_step: int) -> None:
    settings, device = run.settings, next(run.net.parameters()).device
    log = StatsLog(run.out / "stats.jsonl", run.step)
    since, losses = time.monotonic(), []
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[speed]}"))
    with StopRequest() as stop, Progress(*columns, transient=True) as progress:
        task = progress.add_task("IC-Net", total=settings.steps, completed=run.step, speed="")
        while run.step < last_step and not stop.requested:
            x, target = _batch(run.store, records, settings, run.step, settings.batch, device)
            losses.append(_step(run, x, target))
            run.step += 1
            if run.step % settings.log_every == 0:
                speed = len(losses) * settings.batch / (time.monotonic() - since)
                values = {"loss_hu": round(sum(losses) / len(losses), 4), "images_per_s": round(speed, 1)}
                log.write(step=run.step, lr=learning_rate(settings, run.step - 1), **values)
                progress.update(task, speed=f"{values['loss_hu']:.2f} HU, {speed:.0f} images/s")
                since, losses = time.monotonic(), []
            if run.step % settings.validate_every == 0 or run.step == settings.steps:
                run.val_hu = validate(run.net, run.store, settings)
                run.save()
                log.write(step=run.step, val_hu=round(run.val_hu, 4))
                since, losses = time.monotonic(), []
            progress.update(task, completed=run.step)
    if run.step > run.saved_step:
        run.save()
    if stop.requested and run.step < settings.steps:
        raise KeyboardInterrupt
    if run.step < settings.steps:
        progress.console.print(
            f"Stopped after step {run.step} of {settings.steps}; the same command goes on from there."
        )


def _step(run: _Run, x: Tensor, target: Tensor) -> float:
    """One optimiser step; returns the loss before it, in HU."""
    loss = error(run.net(x), target)
    run.adam.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.net.parameters(), run.settings.clip)
    if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
        raise run.diverged()
    for group in run.adam.param_groups:
        group["lr"] = learning_rate(run.settings, run.step)
    run.adam.step()
    return loss.item() * HU_PER_UNIT


@torch.no_grad()
def validate(net: ICNet, store: Store, settings: ICNetTraining) -> float:
    """Mean absolute error in HU on the validation split's pairs, which depend on the seed alone."""
    device = next(net.parameters()).device
    count = settings.validation_pairs
    x, target = _batch(store, store.select("val"), settings, _VALIDATION_STREAM, count, device)
    parts = range(0, count, settings.batch)
    return HU_PER_UNIT * float(
        np.average(
            [error(net(x[i : i + settings.batch]), target[i : i + settings.batch]).item() for i in parts],
            weights=[min(settings.batch, count - i) for i in parts],
        )
    )


def _batch(
    store: Store, records: tuple[Record, ...], settings: ICNetTraining, stream: int, count: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    x, target = draw_batch(store, records, settings, stream, count)
    return (
        torch.from_numpy(x).to(device, memory_format=torch.channels_last),
        torch.from_numpy(target).to(device),
    )
