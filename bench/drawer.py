"""A pyramid's drawer judged as such: held-out heads drawn after their own true plans, with more and fewer evaluations.

    python bench/drawer.py DRAWER --store STORE [--count 12] [--steps 4 6 8 12 20] [--above-sigma 0.005]
                           [--draw-sigma 1.5] [--sampler dpmpp_2m] [--out drawn.png]

DRAWER is a run folder or weights of `slicewise train --above`, or a pyramid, whose last level is taken; STORE holds
heads that it has not seen (all splits are used). Prints one Markdown table, means over heads, and writes a picture: the
first head and what was drawn after its plan, a row for each number of evaluations, axial every 15 mm, brain window.

Within the true brain: error of its mean; root mean square difference to the true head (a drawn head has noise and sulci
of its own, so that even a perfect one differs); "grain", standard deviation of a voxel against the mean of its 3 x 3;
the share of voxels below 15 HU, which are fluid. The Fréchet distance of axial slices is to those of the same heads
themselves: 0 for a copy, and larger for fewer heads. Processor seconds are one thread's.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from slicewise.ascii import chain
from slicewise.checkpoint import kind_of, load_denoiser
from slicewise.data.store import open_store
from slicewise.data.windows import pooled
from slicewise.hu import BRAIN, WHOLE, round_hu
from slicewise.metrics.features import Extractor, efficientnet_lite0, plane_features
from slicewise.metrics.frechet import frechet_of_features
from slicewise.metrics.tissue import brain_mask
from slicewise.pyramid import KIND, load_pyramid
from slicewise.runtime import core_dtype
from slicewise.sampling import ChainSettings
from slicewise.volume import Volume

WINDOWS = (WHOLE, BRAIN)


def figures(hu: np.ndarray, true: np.ndarray, mask: np.ndarray) -> list[float]:
    """The table's numbers of one head; of the true one beside itself where both are it."""
    grain = [each - ndimage.uniform_filter(each.astype(float), (0, 3, 3)) for each in (hu, true)]
    error = hu[mask].astype(float) - true[mask]
    fluid = (hu[mask] < 15).mean() / (true[mask] < 15).mean()
    return [error.mean(), float(np.sqrt(np.mean(error**2))), grain[0][mask].std() / grain[1][mask].std(), fluid]


def features(heads: np.ndarray, spacing: tuple[float, float, float], extractor: Extractor) -> list[np.ndarray]:
    """Features of the middle axial slices of heads (N, Z, Y, X), in each of `WINDOWS`."""
    found = plane_features([Volume.regular(hu, spacing) for hu in heads], extractor, list(WINDOWS))
    return [found["axial", window] for window in WINDOWS]


def row(hu: np.ndarray) -> np.ndarray:
    grey = np.clip((np.hstack(list(hu[3::3])) - BRAIN.lo) / (BRAIN.hi - BRAIN.lo), 0, 1)
    return (255 * grey).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drawer", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 6, 8, 12, 20])
    parser.add_argument("--above-sigma", type=float, default=ChainSettings.above_sigma)
    parser.add_argument("--draw-sigma", type=float, default=ChainSettings.draw_sigma)
    parser.add_argument("--sampler", default=ChainSettings.sampler)
    parser.add_argument("--out", type=Path, default=Path("drawn.png"))
    a = parser.parse_args()
    torch.set_num_threads(1)
    core = core_dtype(torch.device("cpu"))
    pyramid = kind_of(a.drawer) == KIND
    drawer = load_pyramid(a.drawer, core).levels[-1] if pyramid else load_denoiser(a.drawer, core)
    store = open_store(a.store)
    volumes = [store.volume(record) for record in store.records[: a.count]]
    shortest = min(len(v.hu) - r.vertex_slice for v, r in zip(volumes, store.records))
    heads = np.stack([v.hu[r.vertex_slice :][:shortest] for v, r in zip(volumes, store.records)])
    masks = [brain_mask(head, volumes[0].spacing) for head in heads]
    plans = round_hu(pooled(torch.from_numpy(heads), drawer.recipe.above).numpy())
    rows = [row(heads[0])]
    titles = ["evaluations", "processor s a head", "brain's mean, HU", "difference, HU", "grain, of true"]
    titles += ["fluid, of true", "Fréchet, whole range", "Fréchet, brain window"]
    print(f"| {' | '.join(titles)} |\n|{' ---: |' * len(titles)}")
    settings = ChainSettings(a.sampler, slices=shortest, above_sigma=a.above_sigma, draw_sigma=a.draw_sigma)
    extractor, spacing = efficientnet_lite0(), volumes[0].spacing
    own = features(heads, spacing, extractor)
    for steps in a.steps:
        began = time.process_time()
        chosen = replace(settings, draw_steps=steps)
        drawn = np.stack(list(chain(drawer, chosen, 0, range(len(heads)), above=plans)), axis=1)
        seconds = (time.process_time() - began) / len(heads)
        far = [frechet_of_features(*pair) for pair in zip(features(drawn, spacing, extractor), own)]
        found = np.mean([figures(*each) for each in zip(drawn, heads, masks)], axis=0)
        print(
            f"| {steps} | {seconds:.1f} | {found[0]:+.2f} | {found[1]:.1f} | {found[2]:.2f} | {found[3]:.2f} | "
            f"{far[0]:.1f} | {far[1]:.1f} |",
            flush=True,
        )
        rows.append(row(drawn[0]))
    Image.fromarray(np.vstack(rows)).save(a.out)
    print(f"\n{len(heads)} heads of {shortest} slices, noise of {a.above_sigma:g} on the plan; {a.out}")


if __name__ == "__main__":
    main()
