"""Why does intensity drift from slice to slice, and why only in the whole range?

    python studies/drift.py [--quick]

The prediction. A mean that is off by d over the n pixels of the brain hides in noise of σ HU a pixel until σ falls to
about d √n: above, the model sets the brain's level by what it knows of the neighbour, below, it only keeps what is
there. A brain whose mean has, given its neighbour's, a spread s, is therefore decided at σ ≈ s √n, and what the model
gets wrong there stays. An error of the same share of the network's range is more HU where the range is wider: half a
per cent of [-1, 1] is 10 HU of the whole range, 0.2 HU of the window, 2 HU of the companded range at the brain.

Tested on ASCII(2), trained on the same number of slices: whole range and window, linear and companded ("half"), joint
and per-slice noise levels. For each: the share of an offset of the brain that D keeps, against σ, beside what a
Gaussian prior of the measured spread keeps, s² / (s² + σ²/n); the error of the brain's mean in D there; and how its
volumes drift, with and without IC-Net. Then, on the paper's (whole, linear, joint), other offsets, and the middle of
the brain alone: does it go as d √n, as s √n, or neither? Writes drift.png, drift.md and drift.json.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fig2 import WINDOW, measured, window_scale
from fig3 import SCHEDULE, row
from fig5 import icnet
from matplotlib.figure import Figure
from steps import (
    Study,
    arguments,
    command,
    drawn,
    held_out_split,
    markdown,
    paper_denoiser,
    paper_sampler,
    schedule_run,
    trained,
    write_results,
)

from slicewise.calibrate import calibrate_volume
from slicewise.checkpoint import load_denoiser, load_icnet
from slicewise.data.windows import training_windows
from slicewise.diffusion.denoiser import Denoiser
from slicewise.errors import UserError
from slicewise.hu import BRAIN, HUScale
from slicewise.metrics.tissue import brain_mask, brain_profile
from slicewise.random import VALIDATION, generator
from slicewise.reporting.montage import save_figure

# Offset that is put on the brain, and noise levels, both in HU of the brain.
OFFSET_HU = 4.0
OTHER_OFFSETS_HU = (1.0, 16.0)
# Shares of the brain's pixels, about its centre, that are offset alone.
PARTS = (1 / 4, 1 / 16)
NOISE_HU = np.geomspace(1.0, 3000.0, 15)
WINDOWS = 24


@dataclass(frozen=True)
class Model:
    """One way of training: name of its run, HU scale, joint or per-slice noise levels, range of noise levels."""

    run: str
    scale: HUScale
    joint: bool
    sigma: tuple[float, float]


PAPERS = "whole, linear, joint"
MODELS = {
    "window, linear, joint": Model("window", window_scale(), True, WINDOW),
    PAPERS: Model(schedule_run(SCHEDULE), HUScale(), True, SCHEDULE),
    "whole, companded, joint": Model("half-joint", HUScale(companding="half"), True, SCHEDULE),
    "whole, linear, per slice": Model("linear-per-slice", HUScale(), False, SCHEDULE),
    "whole, companded, per slice": Model("half-per-slice", HUScale(companding="half"), False, SCHEDULE),
}


@dataclass(frozen=True)
class Brains:
    """Windows of two neighbouring slices with brain in the second.

    Attributes
    ----------
    hu : int16 (N, 2, Y, X).
    mask : the second slice's brain, bool (N, Y, X).
    position : mm below the vertex, float32 (N,).
    spread : standard deviation over windows of the difference of their slices' mean, HU.
    """

    hu: np.ndarray
    mask: np.ndarray
    position: np.ndarray
    spread: float

    @property
    def pixels(self) -> float:
        """Mean number n of pixels in a mask."""
        return float(self.mask.sum(axis=(1, 2)).mean())


def brains(study: Study) -> Brains:
    """Windows of held-out heads, some of each."""
    windows = training_windows(study.store, held_out_split(study.store), 2)
    rng = generator(study.seed, 0, 0, 0, VALIDATION)
    found, steps = [], []
    for index in rng.permutation(len(windows)):
        hu, position = windows.read(int(index))
        mask = brain_mask(hu, windows.records[0].spacing_mm)
        profile = brain_profile(hu, mask, windows.records[0].spacing_mm)
        if not np.isfinite(profile).all():
            continue
        found.append((hu, mask[1], position))
        steps.append(profile[1] - profile[0])
        if len(found) == WINDOWS:
            break
    if len(found) < 2:
        raise UserError(f"{study.store.path}: fewer than two held-out slices show brain; prepare more heads")
    hu, mask, position = (np.stack(column) for column in zip(*found))
    return Brains(hu, mask, position.astype(np.float32), float(np.std(steps)))


def middle(b: Brains, share: float) -> Brains:
    """The same windows with that share of each mask, the pixels nearest to its centre; the spread is of their means."""
    masks = np.zeros_like(b.mask)
    for kept, mask in zip(masks, b.mask):
        y, x = np.nonzero(mask)
        order = np.argsort((y - y.mean()) ** 2 + (x - x.mean()) ** 2)[: max(1, round(share * len(y)))]
        kept[y[order], x[order]] = True
    steps = [float(hu[1][m].mean() - hu[0][m].mean()) for hu, m in zip(b.hu.astype(np.float64), masks)]
    return Brains(b.hu, masks, b.position, float(np.std(steps)))


def scaling(b: Brains, denoiser: Denoiser, seed: int) -> str:
    """Where offsets of other sizes, and of parts of the brain, are let go, as a Markdown table."""
    cases = {f"brain, d = {d:g} HU": (b, d) for d in sorted((OFFSET_HU, *OTHER_OFFSETS_HU))}
    cases |= {f"middle {share:.3g} of it, d = {OFFSET_HU:g} HU": (middle(b, share), OFFSET_HU) for share in PARTS}
    rows = {}
    for name, (part, offset) in cases.items():
        kept = [response(denoiser, part, float(level), seed, offset)[0] for level in NOISE_HU]
        root = part.pixels**0.5
        rows[name] = {"n": part.pixels, "s, HU": part.spread, "d √n, HU": offset * root, "s √n, HU": part.spread * root,
                      "half kept at, HU": half_kept(np.array(kept))}  # fmt: skip
    return f"{PAPERS}, offsets of other sizes, and of the middle of the brain:\n\n{markdown(rows)}"


@torch.no_grad()
def response(
    denoiser: Denoiser, b: Brains, noise_hu: float, seed: int, offset_hu: float = OFFSET_HU
) -> tuple[float, float]:
    """At noise of `noise_hu` HU a pixel: the share of an offset of the second slice's brain that D keeps, and the root
    mean square error of that brain's mean in D, HU."""
    scale = denoiser.recipe.scale
    level = noise_hu * float(scale.slope(np.array(BRAIN.centre)))
    sigma = torch.full(b.hu.shape[:2], level, dtype=torch.float64)
    if not denoiser.recipe.joint:
        sigma[:, 0] = denoiser.recipe.sigma_min
    noise = generator(seed, 1, 0, 0, VALIDATION).standard_normal(b.hu.shape, np.float32)
    means = []
    for offset in (-offset_hu / 2, 0.0, offset_hu / 2):
        hu = b.hu.astype(np.float64)
        hu[:, 1] += offset * b.mask
        x = torch.from_numpy(scale.encode(hu) + sigma.numpy().astype(np.float32)[:, :, None, None] * noise)
        d = scale.decode(denoiser(x, sigma, torch.from_numpy(b.position))[:, 1].numpy())
        means.append(np.array([v[m].mean() for v, m in zip(d, b.mask)]))
    true = np.array([v[m].mean() for v, m in zip(np.clip(b.hu[:, 1], scale.lo, scale.hi), b.mask)])
    kept = float(np.mean(means[2] - means[0]) / offset_hu)
    return kept, float(np.sqrt(np.mean((means[1] - true) ** 2)))


def half_kept(kept: np.ndarray) -> float:
    """Noise in HU at which D keeps half of an offset: where the curve last crosses a half on the way down."""
    above = np.flatnonzero(kept >= 0.5)
    if not len(above) or above[-1] == len(kept) - 1:
        return float("nan")
    i = int(above[-1])
    part = (kept[i] - 0.5) / (kept[i] - kept[i + 1])
    return float(np.exp(np.log(NOISE_HU[i]) + part * np.log(NOISE_HU[i + 1] / NOISE_HU[i])))


def predicted(b: Brains, noise_hu: np.ndarray) -> np.ndarray:
    """Share of an offset that the posterior mean keeps where the brain's mean is Gaussian with the measured spread."""
    return b.spread**2 / (b.spread**2 + noise_hu**2 / b.pixels)


def figure(b: Brains, kept: dict[str, np.ndarray], errors: dict[str, np.ndarray]) -> Figure:
    picture = Figure(figsize=(11, 4.2), dpi=130, layout="constrained")
    left, right = picture.subplots(1, 2)
    fine = np.geomspace(NOISE_HU[0], NOISE_HU[-1], 200)
    title = f"Gaussian, s = {b.spread:.2g} HU, n = {b.pixels:.0f}"
    left.plot(fine, predicted(b, fine), "k--", linewidth=1, label=title)
    for title in kept:
        left.plot(NOISE_HU, kept[title], marker="o", markersize=3, label=title)
        right.plot(NOISE_HU, errors[title], marker="o", markersize=3, label=title)
    left.axvline(b.spread * b.pixels**0.5, color="k", linewidth=0.6)
    left.set_ylim(-0.2, 1.3)
    left.set_ylabel("share of an offset of the brain that D keeps")
    right.set_yscale("log")
    right.set_ylabel("error of the brain's mean in D, HU")
    for plot in (left, right):
        plot.set_xscale("log")
        plot.set_xlabel("noise in the brain, HU a pixel")
        plot.grid(alpha=0.3)
    left.legend(fontsize=7)
    return picture


def main(argv: Sequence[str] | None = None) -> None:
    study = arguments("drift", __doc__, argv, shared="fig1")
    b, net = brains(study), load_icnet(icnet(study, "paper"))
    kept, errors, rows = {}, {}, {}
    for title, model in MODELS.items():
        settings = paper_denoiser(study, *model.sigma, scale=model.scale, joint=model.joint)
        run: Path = trained(study, model.run, settings)
        denoiser = load_denoiser(run)
        pairs = [response(denoiser, b, float(level), study.seed) for level in NOISE_HU]
        kept[title], errors[title] = (np.array(column) for column in zip(*pairs))
        volumes = list(drawn(study, model.run, run, paper_sampler(study)))
        raw, calibrated = (
            row([measured(v) for v in made]) for made in (volumes, [calibrate_volume(net, v) for v in volumes])
        )
        decided = b.spread * b.pixels**0.5
        rows[title] = {
            "1 HU in x": float(model.scale.slope(np.array(BRAIN.centre))),
            "half kept at, HU": half_kept(kept[title]),
            "predicted, HU": decided,
            "error there, HU": float(np.exp(np.interp(np.log(decided), np.log(NOISE_HU), np.log(errors[title])))),
            "spread between volumes, HU": raw["spread between volumes, HU"],
            "step, HU": raw["step between slices, HU"],
            "drift, HU a slice": raw["drift, HU a slice"],
            "step after IC-Net": calibrated["step between slices, HU"],
            "drift after IC-Net": calibrated["drift, HU a slice"],
        }
    save_figure(figure(b, kept, errors), study.out / "drift.png")
    caption = (
        f"**Where the brain's level is decided.** ASCII(2), {study.budget.levels} levels. Spread of the brain's mean "
        f"given the slice before s = {b.spread:.2g} HU, n = {b.pixels:.0f} pixels, so decided at s √n = "
        f"{b.spread * b.pixels**0.5:.0f} HU of noise a pixel."
    )
    papers = load_denoiser(study.work / MODELS[PAPERS].run)
    write_results(study, rows, caption, scaling(b, papers, study.seed))


if __name__ == "__main__":
    command(main)
