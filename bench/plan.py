"""Plans of a pyramid judged as such: how far heads of 32 x 32 pixels lie from held-out ones, before anything is drawn.

    python bench/plan.py PLAN [PLAN ...] --store STORE [--count 48] [--steps 30] [--guide PLAN --guidance 1.5 2]
                         [--sampler dpmpp_2m] [--gaussian] [--out plans.png]

Each PLAN is a run folder or weights of `slicewise train --network unet3d`, or a pyramid; STORE is the prepared store
that it was trained on, whose val and test heads (of other persons, where the store was made of label maps) are the
held-out ones. Prints one Markdown table and writes a picture: three heads of every plan and three held-out ones, axial
every 15 mm, coronal and sagittal, brain window. With `--gaussian` the Gaussian that the first plan starts from is
judged as well; with `--guide` the first plan is led away from that one, by each `--guidance` (see
`diffusion.denoiser.Guidance`).

Fréchet distance, precision and coverage are in the space of the 24 first principal components of training heads, HU
clipped to [-100, 200]; their floor is training against held-out heads. "Mottle" is the standard deviation of a brain
voxel against the mean of its six neighbours: what is noise on pixels of 7.5 mm. "Nearest" is the root mean square
difference to the nearest training head or its mirror image: of held-out heads it says how near a head comes by chance.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from slicewise.ascii import head_extent, whole_heads
from slicewise.checkpoint import kind_of, load_denoiser
from slicewise.codec import codec
from slicewise.data.store import open_store
from slicewise.data.windows import Heads
from slicewise.data.windows import whole_heads as whole_heads_of
from slicewise.diffusion.denoiser import Denoiser
from slicewise.hu import AIR_HU, BRAIN
from slicewise.metrics.frechet import frechet_of_features
from slicewise.metrics.manifold import distances, neighbours, point_scores
from slicewise.pyramid import KIND, guided, load_pyramid
from slicewise.runtime import core_dtype
from slicewise.sampling import ChainSettings

COMPONENTS = 24


def load_plan(path: Path) -> Denoiser:
    """A plan from its run folder, its weights or a pyramid."""
    core = core_dtype(torch.device("cpu"))
    return load_pyramid(path, core).levels[0] if kind_of(path) == KIND else load_denoiser(path, core)


def held_by(plan: Denoiser, store: Path, split: str) -> np.ndarray:
    """float32 HU (N, K, h, w) of the heads of a split as the plan sees them, air below."""
    heads = Heads(open_store(store), split)
    scale = plan.recipe.scale
    x = whole_heads_of(heads, plan.recipe.slices, scale, heads.side // plan.recipe.size)
    return codec(scale, torch.device("cpu")).decode(x).float().numpy()


def brain(hu: np.ndarray) -> np.ndarray:
    """Voxels well inside the brain: they and all their neighbours lie between -10 and 70 HU."""
    soft = (hu > -10) & (hu < 70)
    return ndimage.binary_erosion(soft, np.ones((3, 3, 3)))


def anatomy(hu: np.ndarray, voxel_ml: float) -> dict[str, float]:
    """What a plan decides of one head (K, h, w)."""
    first, end = head_extent(hu.astype(np.int16))
    mask = brain(hu)
    around = ndimage.convolve(hu, ndimage.generate_binary_structure(3, 1) / 6.0, mode="nearest") - hu / 6.0
    inside = hu[mask]
    sound = inside.size > 50
    return {
        "slices": float(end - first),
        "head, ml": float((hu > AIR_HU).sum() * voxel_ml),
        "brain's core, ml": float(mask.sum() * voxel_ml),
        "brain, HU": float(inside.mean()) if sound else np.nan,
        "fluid below 20 HU, share": float((inside < 20).mean()) if sound else np.nan,
        "mottle, HU": float((hu - around)[mask].std()) if sound else np.nan,
    }


def row(heads: np.ndarray, train: np.ndarray, held: np.ndarray, voxel_ml: float) -> dict[str, str]:
    """The table's column of one set of heads."""
    values = [anatomy(head, voxel_ml) for head in heads[:: max(1, len(heads) // 100)]]
    out = {}
    for name in values[0]:
        found = np.array([v[name] for v in values])
        out[name] = f"{np.nanmean(found):.3g} ± {np.nanstd(found, ddof=1):.2g}"
    both = np.concatenate([train, train[..., ::-1]])
    off = _clipped(both)
    mean = off.mean(axis=0)
    _, _, components = torch.svd_lowrank(torch.from_numpy(off - mean), q=COMPONENTS + 8, niter=4)
    a, b = ((_clipped(each) - mean) @ components[:, :COMPONENTS].numpy() for each in (heads, held))
    if heads is not held:
        out["Fréchet distance to held-out"] = f"{np.sqrt(frechet_of_features(a, b)):.0f}"
    spread = a.var(axis=0).sum() / ((off - mean) @ components[:, :COMPONENTS].numpy()).var(axis=0).sum()
    out["spread between heads, of training"] = f"{np.sqrt(spread):.2f}"
    if heads is not held:
        pool = np.concatenate([b, a])
        k = neighbours(len(b), len(a))
        scores = point_scores(distances(pool, pool), np.arange(len(b)), len(b) + np.arange(len(a)), k)
        out |= {name: f"{scores[name].mean():.2f}" for name in ("precision", "coverage")}
    if heads is not train:
        near = distances(_clipped(heads), off) / np.sqrt(off.shape[1])
        out["nearest training head, HU, median and least"] = f"{np.median(near.min(axis=1)):.1f}, {near.min():.1f}"
    return out


def _clipped(heads: np.ndarray) -> np.ndarray:
    return np.clip(heads, -100, 200).reshape(len(heads), -1).astype(np.float32)


def picture(sets: Sequence[np.ndarray], out: Path) -> None:
    """Three heads of every set, one a row."""
    rows = []
    for heads in sets:
        for head in heads[:3]:
            shown = [head[z] for z in range(3, 34, 3)] + [head[:32, 17], head[:32, :, 15]]
            grey = np.clip((np.hstack(shown) - BRAIN.lo) / (BRAIN.hi - BRAIN.lo), 0, 1)
            rows.append(np.kron((255 * grey).astype(np.uint8), np.ones((4, 4), np.uint8)))
    Image.fromarray(np.vstack(rows)).save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", type=Path, nargs="+")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sampler", default=ChainSettings.sampler)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gaussian", action="store_true")
    parser.add_argument("--guide", type=Path)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.5])
    parser.add_argument("--out", type=Path, default=Path("plans.png"))
    a = parser.parse_args()
    named = {path.name if path.suffix != ".safetensors" else path.parent.name: path for path in a.plans}
    plans = {name: load_plan(path) for name, path in named.items()}
    first = next(iter(plans.values()))
    if a.gaussian:
        plans = {"Gaussian": _untrained(load_plan(a.plans[0])), **plans}
    if a.guide:
        guide, name = load_plan(a.guide), next(iter(named))
        for weight in a.guidance:
            plans[f"{name}, guided {weight:g}"] = guided(plans[name], guide, ChainSettings(guidance=weight))
    train = held_by(first, a.store, "train")
    held = np.concatenate([held_by(first, a.store, split) for split in ("val", "test")])
    voxel_ml = float(np.prod(first.recipe.spacing_mm)) / 1000
    columns = {"training": row(train, train, held, voxel_ml), "held-out": row(held, train, held, voxel_ml)}
    made = {}
    for name, plan in plans.items():
        began = time.monotonic()
        chain = ChainSettings(a.sampler, plan_steps=a.steps)
        parts = [whole_heads(plan, chain, a.seed, range(n, min(n + 8, a.count)), {}) for n in range(0, a.count, 8)]
        made[name] = np.concatenate(parts).astype(np.float32)
        label = f"{name}, step {plan.meta['step']}" if name != "Gaussian" else name
        columns[label] = row(made[name], train, held, voxel_ml)
        columns[label]["seconds a head"] = f"{(time.monotonic() - began) / a.count:.1f}"
    names = list(dict.fromkeys(key for column in columns.values() for key in column))
    print(f"| | {' | '.join(f'{name}' for name in columns)} |\n| --- |{' ---: |' * len(columns)}")
    for name in names:
        print(f"| {name} | {' | '.join(column.get(name, '–') for column in columns.values())} |")
    picture([*made.values(), held], a.out)
    print(f"\n{len(train)} heads to train on, {len(held)} held out, {a.count} of each plan, {a.steps} steps; {a.out}")


def _untrained(plan: Denoiser) -> Denoiser:
    """The Gaussian that a plan starts from: its network's last layer put back to zero."""
    torch.nn.init.zeros_(plan.network.head.weight)
    torch.nn.init.zeros_(plan.network.head.bias)
    return plan


if __name__ == "__main__":
    main()
