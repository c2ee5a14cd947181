"""The head phantom against real heads: HU per tissue, noise level and spectrum, edges, step between slices; montages.

    python bench/phantom_vs_real.py OUT [--data ../shared/data] [--anatomy FOLDER] [--count 12] [--size 256] [--seed 0]

Prints one Markdown table and writes brain.png, bone.png and spectra.png to OUT. Real heads, where they are present
under --data: `ge-head` (DICOM, 0.49 mm, slices 4 and 7 mm apart) and `cranium` (NIfTI, 0.96 x 1.5 mm). They are
averaged to about the phantom's pixel first (and the thin slices of `cranium` by threes, to 4.5 mm), since noise and
edges mean nothing without the pixel.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from slicewise.data.phantom import PhantomSettings, make_phantom
from slicewise.hu import BRAIN, Window
from slicewise.io.dicom import read_series
from slicewise.io.nifti import read_nifti
from slicewise.metrics.tissue import (
    brain_mask,
    brain_profile,
    interface_steps,
    noise_level,
    noise_power_spectrum,
    tissue_means,
)

BONE = Window(-500, 1500)
LEVELS_MM = (20, 32, 44, 56, 66, 76, 86, 98, 110, 122, 134)
ROWS = {
    "CSF, HU": "csf",
    "grey matter, HU": "grey",
    "white matter, HU": "white",
    "grey minus white, HU": "contrast",
    "brain mean, HU": "mean",
    "brain standard deviation, HU": "std",
    "CSF share of the brain": "fluid",
    "noise in the brain, HU": "noise",
    "noise: mean frequency, 1/mm": "frequency",
    "noise: power below 0.1/mm, share": "low",
    "edge air to scalp, 10-90 %, mm": "scalp_edge",
    "edge brain to inner table, 10-90 %, mm": "bone_edge",
    "densest 1 % of the vault, HU": "cortical",
    "step of mean brain HU between slices": "step",
    "brain width, mm": "width",
    "brain length, mm": "length",
}


class Head:
    """One head on a grid: int16 HU (Z, Y, X), spacing (z, y, x) in mm, depth below the vertex of each slice in mm."""

    def __init__(self, name: str, hu: np.ndarray, spacing: tuple[float, float, float], z: np.ndarray) -> None:
        self.name, self.hu, self.spacing = name, hu, spacing
        big = (hu > -300).sum(axis=(1, 2)) * spacing[1] * spacing[2] > 1000
        self.depth = np.abs(z - z[int(np.argmax(big))]) * np.where(np.arange(len(z)) < np.argmax(big), -1, 1)


def phantom_head(kind: str, seed: int, settings: PhantomSettings) -> Head:
    volume = make_phantom(seed, settings).volume
    return Head(f"{kind} {seed}", volume.hu, volume.spacing, volume.positions[:, 2])


def block_mean(hu: np.ndarray, z: int, xy: int) -> np.ndarray:
    """int16 mean over z x xy x xy blocks; what does not fill a block is left off."""
    n_z, n_y, n_x = (n // f for n, f in zip(hu.shape, (z, xy, xy), strict=True))
    cut = hu[: n_z * z, : n_y * xy, : n_x * xy].astype(np.float32)
    return np.rint(cut.reshape(n_z, z, n_y, xy, n_x, xy).mean((1, 3, 5))).astype(np.int16)


def real_heads(data: Path, pixel_mm: float) -> list[Head]:
    heads = []
    if (data / "ge-head").is_dir():
        volume = read_series(data / "ge-head")
        f = max(1, round(pixel_mm / volume.spacing[1]))
        spacing = (volume.spacing[0], volume.spacing[1] * f, volume.spacing[2] * f)
        heads.append(Head("GE HiSpeed", block_mean(volume.hu, 1, f), spacing, volume.positions[:, 2]))
    if (data / "cranium" / "Cranium.nii.gz").is_file():
        volume = read_nifti(data / "cranium" / "Cranium.nii.gz")
        f = max(1, round(pixel_mm / volume.spacing[1]))
        hu = block_mean(volume.hu, 3, f)
        hu = hu[:, ::-1]  # this file's affine is approximate: its y runs the other way
        spacing = (volume.spacing[0] * 3, volume.spacing[1] * f, volume.spacing[2] * f)
        heads.append(Head("InVesalius", np.ascontiguousarray(hu), spacing, -np.arange(len(hu)) * spacing[0]))
    return heads


def edge_widths(head: Head, mask: np.ndarray) -> tuple[float, float]:
    """Median 10-90 % rise in mm along rows: air to scalp, and brain to inner table.

    For each row, the jump over the steepest slope: a Gaussian edge rises from 10 to 90 % in 2.56 sigma and its steepest
    slope is jump / 2.51 sigma, so the two agree within 2 %.
    """
    dx = head.spacing[2]
    scalp, table = [], []
    reach = max(2, round(5 / dx))
    for z in np.flatnonzero(mask.sum((1, 2)) * dx * dx > 8000):
        for y in range(head.hu.shape[1]):
            row = head.hu[z, y].astype(float)
            inside = np.flatnonzero(mask[z, y])
            if len(inside) * dx < 60:
                continue
            head_on = np.flatnonzero(row > -500)
            for line, first, last in ((row, head_on[0], inside[-1]), (row[::-1], len(row) - 1 - head_on[-1], 0)):
                part = line[max(first - reach, 0) : first + reach]
                if part.max() < 250 and part.min() < -900 and part.max() > -150:
                    top = line[first : first + reach].max()
                    scalp.append((top - part.min()) / np.abs(np.diff(part)).max() * dx)
                end = last if line is row else len(row) - 1 - inside[0]
                part = line[end - 1 : end + reach + round(3 / dx)]
                peak = int(np.argmax(part))
                if peak > 1 and part[peak] > 700:
                    table.append((part[peak] - part[0]) / np.diff(part[: peak + 1]).max() * dx)
    return float(np.median(scalp)), float(np.median(table))


def measure(head: Head) -> dict[str, float]:
    """The numbers of `ROWS` for one head, and its noise spectrum."""
    hu, spacing = head.hu, head.spacing
    mask = brain_mask(hu, spacing)
    # Above the skull base only: below it the mask's edge is bone and air.
    upper = mask & (head.depth < 95)[:, None, None]
    stats = tissue_means(hu, upper, spacing)
    f, power = noise_power_spectrum(hu, upper, spacing)
    weight = power * f
    steps = interface_steps(brain_profile(hu, upper, spacing))
    scalp, table = edge_widths(head, upper)
    vault = hu[(head.depth > 30) & (head.depth < 75)]
    flat = upper.any(0)
    return {
        "csf": stats.csf.pure,
        "grey": stats.grey.pure,
        "white": stats.white.pure,
        "contrast": stats.grey.pure - stats.white.pure,
        "mean": stats.mean,
        "std": stats.std,
        "fluid": stats.csf.fraction,
        "noise": noise_level(hu, upper, spacing),
        "frequency": float((weight * f).sum() / weight.sum()),
        "low": float(weight[f < 0.1].sum() / weight.sum()),
        "scalp_edge": scalp,
        "bone_edge": table,
        "cortical": float(np.percentile(vault[vault > 250], 99)),
        "step": float(steps.mean()),
        "width": float(np.ptp(np.flatnonzero(flat.any(0))) * spacing[2]),
        "length": float(np.ptp(np.flatnonzero(flat.any(1))) * spacing[1]),
        "_f": f,  # type: ignore[dict-item]
        "_power": power,  # type: ignore[dict-item]
    }


def table(real: list[Head], numbers: list[dict], kinds: dict[str, list[dict]]) -> str:
    """Markdown: a column a real head, and mean ± SD over the heads of each kind of phantom."""
    names = [h.name for h in real] + [f"{name}, mean ± SD of {len(heads)} heads" for name, heads in kinds.items()]
    lines = [f"| | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for title, key in ROWS.items():
        columns = [np.array([head[key] for head in heads]) for heads in kinds.values()]
        digits = 2 if abs(columns[0].mean()) < 5 else 1
        cells = [f"{n[key]:.{digits}f}" for n in numbers]
        cells += [f"{values.mean():.{digits}f} ± {values.std():.{digits}f}" for values in columns]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def montage(heads: list[Head], window: Window, path: Path) -> None:
    """One row a head, one column a depth below the vertex; the same millimetres everywhere."""
    fig, axes = plt.subplots(
        len(heads), len(LEVELS_MM), figsize=(2 * len(LEVELS_MM), 2.4 * len(heads)), facecolor="black", squeeze=False
    )
    for row, head in zip(axes, heads, strict=True):
        y, x = np.nonzero((head.hu > -300).any(0))
        half_y, half_x = 112 / head.spacing[1], 95 / head.spacing[2]
        cy, cx = (y.min() + y.max()) / 2, (x.min() + x.max()) / 2
        for ax, level in zip(row, LEVELS_MM, strict=True):
            picture = head.hu[int(np.argmin(np.abs(head.depth - level)))]
            aspect = head.spacing[1] / head.spacing[2]
            ax.imshow(picture, cmap="gray", vmin=window.lo, vmax=window.hi, aspect=aspect, interpolation="bilinear")
            ax.set_xlim(cx - half_x, cx + half_x)
            ax.set_ylim(cy + half_y, cy - half_y)
            ax.axis("off")
        row[0].text(0.02, 0.98, head.name, color="yellow", transform=row[0].transAxes, va="top", fontsize=9)
    fig.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
    fig.savefig(path, dpi=90)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real heads")
    parser.add_argument("--anatomy", type=Path, help="folder of label maps: measure heads of real anatomy as well")
    parser.add_argument("--count", type=int, default=12, help="phantoms to measure")
    parser.add_argument("--size", type=int, default=256, help="pixels per side of the phantoms")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first phantom")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    settings = PhantomSettings(size=args.size, pathology=0.0)
    kinds = {"procedural": settings}
    if args.anatomy:
        kinds["real anatomy"] = replace(settings, anatomy=args.anatomy, split=(1.0, 0.0, 0.0))
    phantoms = {name: [phantom_head(name, args.seed + i, s) for i in range(args.count)] for name, s in kinds.items()}
    real = real_heads(args.data, settings.fov_mm / settings.size)
    if not real:
        print(f"No real heads under {args.data}: phantoms alone.\n")
    of_real = [measure(h) for h in real]
    of_phantoms = {name: [measure(h) for h in heads] for name, heads in phantoms.items()}
    print(table(real, of_real, of_phantoms))
    last = list(phantoms)[-1]
    shown, of_shown = real + phantoms[last][:3], of_real + of_phantoms[last][:3]
    montage(shown, BRAIN, args.out / "brain.png")
    montage(shown, BONE, args.out / "bone.png")
    fig, ax = plt.subplots(figsize=(6, 4))
    for head, numbers in zip(shown, of_shown, strict=True):
        weight = numbers["_power"] * numbers["_f"]
        step = np.gradient(numbers["_f"])
        ax.plot(numbers["_f"], numbers["_power"] / (weight * step).sum(), label=head.name)
    ax.set(xlabel="frequency, 1/mm", ylabel="noise power, normalised to the same variance")
    ax.legend()
    fig.tight_layout()
    fig.savefig(args.out / "spectra.png", dpi=110)
    print(f"\nPictures: {args.out}/brain.png, bone.png, spectra.png")


if __name__ == "__main__":
    main()
