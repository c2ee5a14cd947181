"""Training of IC-Net, self-supervised on real neighbouring slices (Jeong et al. 2023, section 2.3, equations 3 and 4).

A real slice x^{t+1} is distorted, x̂ = (x^{t+1} - mean)·μ + mean (+ offset), and the network, seeing x̂ and x^t, learns
to undo it. Where the paper leaves things open:

- the mean is over the slice's voxels inside the window (-150, 150) HU: the soft tissue, neither air nor bone;
- only those voxels are distorted, as only those are calibrated afterwards; the window then clips what has left it.
  What is clipped cannot be restored: in fat and in blood this is what makes μ = 1.2 and 1.3 hard;
- the error is the mean over the voxels that lie inside the window in the true slice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from slicewise.data.store import Store
from slicewise.data.windows import Cut, Heads
from slicewise.errors import UserError
from slicewise.hu import HU_MIN, ICNET
from slicewise.networks.icnet import ICNet
from slicewise.random import TRAIN_ORDER, VALIDATION, Draws
from slicewise.runtime import Process, processes
from slicewise.training.ema import EMA
from slicewise.training.run import run, training_heads
from slicewise.training.settings import ICNetTraining

GAIN_RANGE = (0.7, 1.3)
OFFSET_HU = 20.0
# A slight distortion, as a part of a whole one.
SLIGHT = 0.1
_CONTRAST_HU = 100.0
HU_PER_UNIT = (ICNET.hi - ICNET.lo) / 2.0

# Slices whose tissue is measured at once.
_AT_ONCE = 256
Array = TypeVar("Array", np.ndarray, Tensor)


def distort(hu: Array, gain: Array | float, offset: Array | float = 0.0) -> Array:
    """Equation 3 with an offset: (hu - mean)·gain + mean + offset in the voxels inside (-150, 150) HU, the others kept.

    `hu` (..., H, W) in HU, NumPy or torch, any real dtype; gain and offset (HU) are numbers or broadcast against its
    leading axes; the mean is each slice's own over the voxels that change. Returns HU that are not clipped. Gain 1 and
    offset 0 give hu back to the bit.
    """
    inside = (hu > ICNET.lo) & (hu < ICNET.hi)
    mean = ((hu * inside).sum((-2, -1)) / inside.sum((-2, -1)).clip(1))[..., None, None]
    gain, offset = (v if isinstance(v, float) else v[..., None, None] for v in (gain, offset))
    found: Array = hu + inside * ((gain - 1.0) * (hu - mean) + offset)
    return found


def error_hu(result: np.ndarray, true: np.ndarray) -> float:
    """Mean absolute difference in HU over the voxels whose true value lies inside (-150, 150) HU, both clipped to that
    window; NaN where there are none. The paper's Figure 5 measures IC-Net by it."""
    inside = (true > ICNET.lo) & (true < ICNET.hi)
    difference = np.clip(result, ICNET.lo, ICNET.hi) - true
    return float(np.abs(difference[inside]).mean()) if inside.any() else float("nan")


class Pairs:
    """Neighbouring slices of some heads, both with enough tissue inside the window.

    Parameters
    ----------
    heads : where they lie; they may grow in number.
    least_tissue : least share of a slice's voxels inside the window.

    Raises `UserError` where there is no such pair.
    """

    def __init__(self, heads: Heads, least_tissue: float) -> None:
        self.heads, self.least_tissue = heads, least_tissue
        self.share = torch.zeros(0)  # of tissue, row by row
        if not len(self.upper()):
            raise UserError(
                f"{heads.store.path}: no two neighbouring slices of the {heads.split} split have {least_tissue:.0%} "
                "soft tissue; check the volumes, or lower ICNetTraining.least_tissue"
            )

    def upper(self) -> Tensor:
        """(P,) int64, the row of the upper slice of every pair; the row after it is the lower one."""
        total = int(self.heads.ends[-1])
        if len(self.share) < total:
            new = torch.arange(len(self.share), total).split(_AT_ONCE)
            self.share = torch.cat([self.share, *(_tissue(_whole(self.heads, rows[:, None])) for rows in new)])
            enough = self.share >= self.least_tissue
            last = torch.zeros(total, dtype=torch.bool)
            last[torch.from_numpy(self.heads.ends) - 1] = True
            self.found = (enough[:-1] & enough[1:] & ~last[:-1]).nonzero()[:, 0]
        return self.found


def _whole(heads: Heads, rows: Tensor) -> Tensor:
    """Whole slices (B, K), int16 HU (B, K, H, W) on the device."""
    zero = torch.zeros(len(rows), dtype=torch.int64)
    return heads.cut(Cut(rows, zero, zero, zero.bool(), (heads.side, heads.side)))


def _tissue(hu: Tensor) -> Tensor:
    """Share of voxels inside the window of slices (B, 1, H, W), (B,) on the host."""
    return ((hu > ICNET.lo) & (hu < ICNET.hi)).float().mean((1, 2, 3)).cpu()


def draw_batch(
    pairs: Pairs, settings: ICNetTraining, step: int, samples: range, stream: int = TRAIN_ORDER
) -> tuple[Tensor, Tensor]:
    """Training pairs, a pure function of (seed, step, sample): x (B, 2, H, W), [x̂, neighbour], and target
    (B, 1, H, W), float32 in the unit range of the window, on the device of the heads."""
    draws = Draws(settings.seed, samples, 0, step, stream)
    upper = pairs.upper()
    row = upper[draws.integers(len(upper))]
    swap, air, slight, gain, offset = draws.uniform(5).unbind(1)
    # The slice to correct is the lower one, as in a chain that runs downward.
    upward = (swap < 0.5)[:, None] & settings.both_ways
    rows = torch.where(upward, torch.cat([row, row + 1], dim=1), torch.cat([row + 1, row], dim=1))
    whole = 1.0 if settings.recipe == "offset" else 0.0
    at_air = air < settings.air_pairs
    part = torch.where(slight < settings.slight * whole, SLIGHT, 1.0) * ~at_air
    gain = GAIN_RANGE[0] + (GAIN_RANGE[1] - GAIN_RANGE[0]) * gain
    offset = OFFSET_HU * (2.0 * offset - 1.0) * whole
    drift = draws.normal(2) * settings.neighbour_error_hu * whole
    gains = 1.0 + torch.stack([part * (gain - 1.0), drift[:, 0] / _CONTRAST_HU], dim=1)
    offsets = torch.stack([part * offset, drift[:, 1]], dim=1)
    device = pairs.heads.device
    gains, offsets, at_air = (v.to(device, non_blocking=True) for v in (gains, offsets, at_air))
    true = _whole(pairs.heads, rows).float()
    x = distort(true, gains, offsets)
    x[:, 1] = torch.where(at_air[:, None, None], HU_MIN, x[:, 1])
    return _unit(x).to(memory_format=torch.channels_last), _unit(true[:, :1])


def _unit(hu: Tensor) -> Tensor:
    """`hu.to_unit` of the window on a device."""
    return (hu.clamp(ICNET.lo, ICNET.hi) - ICNET.centre) / HU_PER_UNIT


def error(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over the voxels whose target lies inside the window; a scalar in unit range (× 150 = HU)."""
    weight = (target.abs() < 1.0).to(target.dtype)
    return (weight * (output - target).abs()).sum() / weight.sum().clamp_min(1.0)


def train_icnet(store: Store, out: Path, settings: ICNetTraining | None = None) -> Path:
    """Train IC-Net on a prepared store, in one process, and return its checkpoint, out/weights.safetensors.

    `out` is a run folder (see `run`); stats.jsonl holds loss_hu and val_hu. Raises `UserError` for a store without
    training or validation volumes or soft tissue, under torchrun, and as `run` does; KeyboardInterrupt, with the state
    saved, after Ctrl-C or SIGTERM.
    """
    settings = settings or ICNetTraining()
    settings.check()
    with processes(settings.device) as process:
        if process.world > 1:
            raise UserError("train-icnet: it runs in one process; start it without torchrun")
        return run(ICNetTrainer(store, Path(out), settings, process), Path(out), "train-icnet", process)


class ICNetTrainer:
    """IC-Net in training, as the loop takes it (see `run.Trainer`)."""

    name, exported = "IC-Net", "net"
    free = frozenset({"validation_pairs"})
    average: EMA | None = None
    width: float | None = None

    def __init__(self, store: Store, out: Path, settings: ICNetTraining, process: Process) -> None:
        if not store.select("train") or not store.select("val"):
            raise UserError(
                f"{store.path}: needs at least one volume in each of the splits train and val; prepare more data"
            )
        self.settings = settings
        self.heads = training_heads(store, out, process)
        self.pairs = Pairs(self.heads, settings.least_tissue)
        self.validation = Pairs(Heads(store, "val", process.device), settings.least_tissue)
        torch.manual_seed(settings.seed)
        net = ICNet(settings.network).to(process.device)
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.networks: dict[str, nn.Module] = {"net": self.net}
        adam = torch.optim.Adam(self.net.parameters(), lr=settings.lr, fused=True)
        self.optimizers: Sequence[torch.optim.Optimizer] = [adam]
        self.val_hu: float | None = None

    def step(self, step: int) -> dict[str, Tensor]:
        s, optimizer = self.settings, self.optimizers[0]
        x, target = draw_batch(self.pairs, s, step, range(s.batch))
        optimizer.zero_grad(set_to_none=True)
        loss = error(self.net(x), target)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), s.clip)
        optimizer.step()
        self.val_hu = None
        return {"loss_hu": HU_PER_UNIT * loss.detach(), "grad_norm": norm}

    def model(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        about = {"training": asdict(self.settings), "val_mae_hu": self.val_hu, "window_hu": [ICNET.lo, ICNET.hi]}
        return "icnet", asdict(self.settings.network), about

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Mean absolute error in HU on the validation split's pairs, which depend on the seed alone."""
        s = self.settings
        parts = torch.arange(s.validation_pairs).split(s.batch)
        total = 0.0
        for part in parts:
            x, target = draw_batch(self.validation, s, 0, range(int(part[0]), int(part[-1]) + 1), VALIDATION)
            total += len(part) * float(error(self.net(x), target))
        self.val_hu = HU_PER_UNIT * total / s.validation_pairs
        return {"val_hu": round(self.val_hu, 4)}

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """Some slices of the validation split: distorted, what the network makes of them, and as they are."""
        from slicewise.reporting.montage import slice_sheet
        from slicewise.volume import Volume

        x, target = draw_batch(self.validation, self.settings, 0, range(6), VALIDATION)
        hu = HU_PER_UNIT * torch.cat([x[:, :1], self.net(x), target])[:, 0].cpu().numpy() + ICNET.centre
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = Volume.regular(np.rint(hu).astype(np.int16), self.heads.records[0].spacing_mm)
        slice_sheet(volume, path, ICNET, f"{path.stem}: distorted, calibrated, true")

    def memory(self) -> dict[str, Any]:
        return {}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Nothing but weights and moments is its state."""

    def finish(self) -> None:
        if self.val_hu is None:
            self.validate()
