"""Samplers against a Gaussian mixture whose score is known in closed form: error against evaluations (NFE).

    python bench/samplers.py [--out docs/results] [--samples 2048] [--dimension 16] [--largest 1024]

Everything is float64. The target is a mixture of three Gaussians with unequal weights and differently turned
covariances; its thinnest directions have a standard deviation of 0.01 to 0.02, about 20 to 40 HU of the linear range,
as fine as tissue contrast is for a CT. The denoiser is the exact posterior mean at every noise level. Measured:

* deviation (heun, dpmpp_2m): root mean square distance, per component of x, from the exact probability flow of the same
  start (an adaptive eighth-order integration from sigma_max to sigma_min, then the same last denoising step). Where the
  flow parts between two modes a coarse sampler can end in the other one, so the median over samples is used;
* sliced W1 (all): Wasserstein-1 distance along 64 fixed directions, mean, against as many exact draws; its floor is the
  same between two sets of exact draws;
* weights (all): largest error of a mode's share of the samples; the floor is the error of as many exact draws;
* thin (all): standard deviation along each mode's thinnest direction over the true one, mean of the modes. 1 is right;
  noise left in a sample shows here first.

Prints a Markdown table and writes samplers.png.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from scipy.integrate import solve_ivp

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from slicewise.diffusion import samplers, schedule
from slicewise.hu import HU_CODES
from slicewise.random import INITIAL, VALIDATION, generator
from slicewise.reporting.montage import save_figure

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
HU_PER_X = (HU_CODES - 1) / 2
WEIGHTS = np.array([0.5, 0.3, 0.2])
NFES = (6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2000)
RUNS = (
    ("dpmpp_2m", "karras"),
    ("heun", "karras"),
    ("dpmpp_2m", "geometric"),
    ("pc", "karras"),
    ("pc", "geometric"),
    ("pc_noisy", "geometric"),
)
DETERMINISTIC = ("heun", "dpmpp_2m")


@dataclass(frozen=True)
class Mixture:
    """Gaussian mixture: means (M, d), axes (M, d, d) with eigenvectors as columns, variances (M, d) along them."""

    means: np.ndarray
    axes: np.ndarray
    variances: np.ndarray

    def responsibilities(self, x: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        """(n, M) posterior of the modes at noise `sigma`, and (M, n, d) coordinates along each mode's axes."""
        along = (x[None] - self.means[:, None]) @ self.axes
        spread = (self.variances + sigma**2)[:, None]
        log = np.log(WEIGHTS)[:, None] - 0.5 * (along**2 / spread + np.log(spread)).sum(axis=2)
        share = np.exp(log - log.max(axis=0))
        return (share / share.sum(axis=0)).T, along

    def denoise(self, x: np.ndarray, sigma: float) -> np.ndarray:
        """E[x0 | x] of (n, d) samples: each mode's Wiener estimate, weighted by its posterior."""
        share, along = self.responsibilities(x, sigma)
        shrunk = along * (self.variances / (self.variances + sigma**2))[:, None]
        estimates = self.means[:, None] + shrunk @ self.axes.swapaxes(1, 2)
        return np.einsum("nm,mnd->nd", share, estimates)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Exact samples (count, d)."""
        mode = rng.choice(len(WEIGHTS), count, p=WEIGHTS)
        z = rng.standard_normal((count, self.means.shape[1])) * np.sqrt(self.variances[mode])
        return self.means[mode] + np.einsum("ne,nde->nd", z, self.axes[mode])


def make_mixture(dimension: int) -> Mixture:
    rng = generator(0, 0, 0, 0, VALIDATION)
    means = rng.standard_normal((3, dimension))
    means *= 0.5 * np.sqrt(dimension) / np.linalg.norm(means, axis=1, keepdims=True)
    axes = np.stack([np.linalg.qr(rng.standard_normal((dimension, dimension)))[0] for _ in range(3)])
    thinnest = np.array([0.01, 0.014, 0.02])
    deviations = np.geomspace(thinnest, 0.2, dimension, axis=1)
    return Mixture(means, axes, deviations**2)


def exact_flow(mixture: Mixture, start: np.ndarray) -> np.ndarray:
    """Probability flow dx/d(ln sigma) = x - D(x; sigma) from sigma_max to sigma_min, then D: (n, d)."""

    def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        x = flat.reshape(start.shape)
        return (x - mixture.denoise(x, float(np.exp(log_sigma)))).ravel()

    span = (np.log(SIGMA_MAX), np.log(SIGMA_MIN))
    solved = solve_ivp(slope, span, start.ravel(), method="DOP853", rtol=1e-8, atol=1e-10)
    assert solved.success, solved.message
    return mixture.denoise(solved.y[:, -1].reshape(start.shape), SIGMA_MIN)


def sample(
    mixture: Mixture, sampler: str, spacing: str, steps: int, start: np.ndarray, sigma_min: float = SIGMA_MIN
) -> np.ndarray:
    """Run one of slicewise's samplers from `start` (n, d) at sigma_max."""

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.from_numpy(mixture.denoise(x.numpy().reshape(start.shape), sigma)).reshape(x.shape)

    def noise(step: int, stream: int) -> torch.Tensor:
        return torch.from_numpy(generator(1, 0, 0, step, stream).standard_normal(start.shape))[:, None, None]

    sigmas = getattr(schedule, spacing)(steps, sigma_min, SIGMA_MAX)
    run: Callable[..., torch.Tensor] = {
        "pc": samplers.pc,
        "pc_noisy": partial(samplers.pc, clean_mean=False),
        "heun": samplers.heun,
        "dpmpp_2m": samplers.dpmpp_2m,
    }[sampler]
    return run(denoise, torch.from_numpy(start)[:, None, None], sigmas, noise).numpy().reshape(start.shape)


def sliced_w1(a: np.ndarray, b: np.ndarray, directions: np.ndarray) -> float:
    return float(np.abs(np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)).mean())


def modes(mixture: Mixture, x: np.ndarray) -> tuple[float, float]:
    """Largest error of a mode's share, and the mean ratio of spread along the thinnest directions."""
    share, along = mixture.responsibilities(x, SIGMA_MIN)
    mode = share.argmax(axis=1)
    found = np.bincount(mode, minlength=len(WEIGHTS)) / len(x)
    thin = [along[m, mode == m, 0].std() / np.sqrt(mixture.variances[m, 0]) for m in range(len(WEIGHTS)) if found[m]]
    return float(np.abs(found - WEIGHTS).max()), float(np.mean(thin))


@dataclass(frozen=True)
class Row:
    sampler: str
    spacing: str
    nfe: int
    deviation: float
    w1: float
    weights: float
    thin: float

    @property
    def name(self) -> str:
        return f"{self.sampler}, {self.spacing}"


def measure(mixture: Mixture, count: int, largest: int) -> tuple[list[Row], Row]:
    rng = generator(2, 0, 0, 0, VALIDATION)
    dimension = mixture.means.shape[1]
    truth, again = mixture.draw(rng, count), mixture.draw(rng, count)
    directions = rng.standard_normal((dimension, 64))
    directions /= np.linalg.norm(directions, axis=0)
    start = SIGMA_MAX * generator(1, 0, 0, 0, INITIAL).standard_normal((count, dimension))
    few = min(count, 256)
    flow = exact_flow(mixture, start[:few])
    rows = []
    for sampler, spacing in RUNS:
        for nfe in (n for n in NFES if n <= largest):
            steps = nfe if sampler == "dpmpp_2m" else (nfe + 1) // 2
            x = sample(mixture, sampler, spacing, steps, start)
            deviation = float("nan")
            if sampler in DETERMINISTIC:
                deviation = float(np.median(np.sqrt(((x[:few] - flow) ** 2).mean(axis=1))))
            used = samplers.nfe(sampler, steps)
            rows.append(Row(sampler, spacing, used, deviation, sliced_w1(x, truth, directions), *modes(mixture, x)))
    floor = Row("exact draws", "", 0, 0.0, sliced_w1(again, truth, directions), *modes(mixture, again))
    return rows, floor


def table(rows: list[Row], floor: Row) -> str:
    lines = [
        "| sampler, spacing | NFE | deviation from the exact flow, x | … in HU | sliced W1 | weights | thin |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in [*rows, floor]:
        flow = f"{r.deviation:.2e} | {r.deviation * HU_PER_X:.2f}" if r.sampler in DETERMINISTIC else "– | –"
        name, nfe = (r.name, str(r.nfe)) if r.nfe else ("floor: exact draws", "–")
        lines.append(f"| {name} | {nfe} | {flow} | {r.w1:.4f} | {r.weights:.3f} | {r.thin:.3f} |")
    return "\n".join(lines)


def orders(rows: list[Row]) -> str:
    """Observed order of convergence: slope of log deviation against log NFE over the last doubling or so."""
    found = []
    for name in dict.fromkeys(r.name for r in rows if r.sampler in DETERMINISTIC):
        one = [r for r in rows if r.name == name]
        if len(one) >= 3:
            first, last = one[-3], one[-1]
            slope = np.log(first.deviation / last.deviation) / np.log(last.nfe / first.nfe)
            found.append(f"{name} {slope:.2f} (NFE {first.nfe} to {last.nfe})")
    return "Observed order of convergence: " + "; ".join(found) + "."


def noise_kept(mixture: Mixture, start: np.ndarray, sigma_min: float) -> float:
    """Root mean square, in HU, of what pc_noisy leaves in a result that pc, with the same noise, does not."""
    noisy, clean = (sample(mixture, s, "geometric", 64, start, sigma_min) for s in ("pc_noisy", "pc"))
    return float(np.sqrt(((noisy - clean) ** 2).mean())) * HU_PER_X


def plot(rows: list[Row], floor: Row, path: Path) -> None:
    fig, axes = plt.subplots(1, 3, figsize=(13, 4.2), constrained_layout=True)
    titles = {
        "deviation": "Deviation from the exact probability flow (HU, linear range)",
        "w1": "Sliced Wasserstein-1 distance (x)",
        "thin": "Spread along the thinnest directions / true",
    }
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(r.name for r in rows))}
    for ax, (key, title) in zip(axes, titles.items()):
        for name, colour in colours.items():
            one = [r for r in rows if r.name == name and np.isfinite(getattr(r, key))]
            unit = HU_PER_X if key == "deviation" else 1.0
            if one:
                x, y = [r.nfe for r in one], [unit * getattr(r, key) for r in one]
                line = "o--" if one[0].sampler == "pc_noisy" else "o-"  # lies on pc's but for its last noise
                ax.plot(x, y, line, ms=3, color=colour, label=name)
        ax.set(xscale="log", xlabel="evaluations of the denoiser (NFE)", yscale="log")
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3, which="both", linewidth=0.4)
    axes[0].axhline(1.0, color="0.4", ls=":", lw=1)
    axes[0].text(axes[0].get_xlim()[0] * 1.05, 1.1, "1 HU", fontsize=8, color="0.4")
    axes[1].axhline(floor.w1, color="0.4", ls=":", lw=1)
    axes[1].text(axes[1].get_xlim()[0] * 1.05, floor.w1 * 1.04, "exact draws", fontsize=8, color="0.4")
    axes[2].axhline(1.0, color="0.4", ls=":", lw=1)
    axes[1].legend(fontsize=8, frameon=False)
    save_figure(fig, path)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of samplers.png")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--dimension", type=int, default=16)
    parser.add_argument("--largest", type=int, default=1024, help="largest NFE")
    options = parser.parse_args()
    mixture = make_mixture(options.dimension)
    rows, floor = measure(mixture, options.samples, options.largest)
    print(
        f"Mixture of {len(WEIGHTS)} Gaussians in {options.dimension} dimensions, {options.samples} samples, "
        f"σ from {SIGMA_MAX:g} to {SIGMA_MIN:g}; the score is exact. 1 HU of the linear range is {1 / HU_PER_X:.2e}.\n"
    )
    print(table(rows, floor))
    print(f"\n{orders(rows)}")
    start = SIGMA_MAX * generator(1, 0, 0, 0, INITIAL).standard_normal((64, options.dimension))
    kept = "; ".join(f"{noise_kept(mixture, start, low):.2f} HU at σ_min = {low:g}" for low in (0.01, 0.001))
    print(f"\nNoise that pc_noisy leaves in its result, linear range: {kept}.")
    plot(rows, floor, options.out / "samplers.png")
    print(f"\n![Error against NFE](samplers.png)\n\nPicture: {options.out / 'samplers.png'}")


if __name__ == "__main__":
    main()
