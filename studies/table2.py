"""Table 2, as far as a machine can give it: continuity of eight structures from slice to slice, on the readers' scale.

    python studies/table2.py [--quick] [--anatomy MAPS]

A 2D segmentation network (MONAI's U-Net, three slices in) learns the structures from labelled phantoms. In what it
finds, the overlap of a structure at an interface is |A ∩ B'| + |B ∩ A'| over |A| + |B|, where ' widens by a pixel; a
slice in which it is missing between slices that show it has none. Overlap falls by itself where a structure tapers, so
each is told in units of what is usual in held-out heads at that place of the structure, segmented by the same network:
0 is their median there, -1 their 5th percentile. A volume is judged by the mean of its two worst interfaces, which are
what a reader sees, among those of the held-out heads:

    3 well preserved   at or above their 5th percentile
    2 strained         below it by no more than the median is above it
    1 discontinuous    further below, or the structure is missing

The rule is shown to work on other held-out heads, whole (they should have 3) and with their continuity broken on
purpose. Generated volumes are the release checkpoint's, or those of a phantom-trained `--checkpoint`, and all heads lie
on its grid. Of label maps (`--anatomy`), the network learns heads of the persons to train on, and those that say what
is usual are of the persons to test on. Writes table2.md, .json and .png.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from scipy import ndimage
from steps import Study, arguments, command, steps_for, write_results

from slicewise import release
from slicewise.data.phantom import PhantomSettings, make_phantom
from slicewise.data.phantom.labels import LABELS
from slicewise.generate import generate, results
from slicewise.hu import BRAIN, HU_MIN, WHOLE, to_unit
from slicewise.io.tensors import load_tensors, save_tensors
from slicewise.progress import counting_bar
from slicewise.pyramid import load_generator
from slicewise.reporting.montage import save_figure
from slicewise.sampling import GenerateSettings

STRUCTURES: dict[str, tuple[str, ...]] = {
    "skull": ("skull", "diploe"),
    "skull base": ("skull base", "mastoid"),
    "facial bone": ("facial bone",),
    "ventricles": ("ventricles",),
    "sulci and fissures": ("sulci", "cisterns"),
    "basilar artery": ("basilar artery",),
    "venous sinuses": ("venous sinuses",),
    "internal capsule": ("internal capsule",),
}
HELD_OUT_SEED = 200_000
# Held-out heads that say what is usual, for each that is judged: a 5th percentile of a few is but their least.
REFERENCE = 4
# A structure of fewer pixels in a slice is taken for absent.
LEAST_PIXELS = 3
# Parts of a structure's way from its first slice to its last in which overlaps are compared.
PLACES = 5
BATCH = 16


# --- Heads with labels -------------------------------------------------------------------------------------------


def classes(labels: np.ndarray) -> np.ndarray:
    """Phantom labels to classes, uint8: 0 for the rest, else the structure's place in STRUCTURES plus one."""
    table = np.zeros(256, np.uint8)
    for number, parts in enumerate(STRUCTURES.values(), start=1):
        table[[LABELS[p] for p in parts]] = number
    return table[labels]


def labelled(folder: Path, seeds: Sequence[int], settings: PhantomSettings) -> list[tuple[np.ndarray, np.ndarray]]:
    """(int16 HU, classes), (Z, Y, X) each, of the phantoms of these seeds; kept in `folder`."""
    heads = []
    with counting_bar(True, transient=True) as bar:
        task = bar.add_task("phantoms", total=len(seeds))
        for seed in seeds:
            file = folder / f"phantom-{seed:08d}.safetensors"
            if not file.is_file():
                phantom = make_phantom(seed, settings)
                folder.mkdir(parents=True, exist_ok=True)
                tensors = {"hu": phantom.volume.hu, "classes": classes(phantom.labels)}
                save_tensors(file, {k: torch.from_numpy(v) for k, v in tensors.items()}, {"seed": seed})
            tensors, _ = load_tensors(file)
            heads.append((tensors["hu"].numpy(), tensors["classes"].numpy()))
            bar.advance(task)
    return heads


# --- Segmentation ------------------------------------------------------------------------------------------------


def inputs(hu: np.ndarray) -> torch.Tensor:
    """What the network sees of each slice of (Z, Y, X): it and its neighbours (air beyond the ends), in two windows,
    (Z, 6, Y, X) float32."""
    padded = np.pad(hu, ((1, 1), (0, 0), (0, 0)), constant_values=HU_MIN)
    near = np.stack([padded[:-2], padded[1:-1], padded[2:]], axis=1)
    return windows(near)


def windows(near: np.ndarray) -> torch.Tensor:
    """A slice between its neighbours (…, 3, Y, X) in two windows, (…, 6, Y, X) float32."""
    return torch.from_numpy(np.concatenate([to_unit(near, WHOLE), to_unit(near, BRAIN)], axis=-3))


def segmenter(study: Study, heads: Sequence[tuple[np.ndarray, np.ndarray]]) -> UNet:
    """The network, trained on slices drawn at random from `heads`; kept in the study's work folder."""
    torch.manual_seed(study.seed)
    net = UNet(2, 6, len(STRUCTURES) + 1, channels=(24, 48, 96, 128), strides=(2, 2, 2), num_res_units=1)
    net = net.to(memory_format=torch.channels_last)
    steps = steps_for(study.budget.images, BATCH)
    key = {"steps": steps, "heads": len(heads), "size": study.budget.size, "seed": study.seed}
    if study.anatomy:
        key["anatomy"] = study.anatomy.name
    file = study.work / "segmenter.safetensors"
    if file.is_file():
        tensors, about = load_tensors(file)
        if about == key:
            net.load_state_dict(tensors)
            return net.eval()
    loss_of = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    rng = np.random.default_rng(study.seed)
    with counting_bar(True, transient=True) as bar:
        task = bar.add_task("segmentation", total=steps)
        for _ in range(steps):
            xs, ys = [], []
            for _ in range(BATCH):
                hu, truth = heads[int(rng.integers(len(heads)))]
                z = int(rng.integers(len(hu)))
                flipped = slice(None, None, -1 if rng.random() < 0.5 else 1)
                near = [hu[i] if 0 <= i < len(hu) else np.full_like(hu[0], HU_MIN) for i in (z - 1, z, z + 1)]
                xs.append(windows(np.stack(near)[:, :, flipped]))
                ys.append(torch.from_numpy(truth[z][None, :, flipped].astype(np.int64)))
            with torch.autocast("cpu", torch.bfloat16):
                out = net(torch.stack(xs).contiguous(memory_format=torch.channels_last))
            loss = loss_of(out.float(), torch.stack(ys))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.advance(task)
    save_tensors(file, net.state_dict(), key)
    return net.eval()


@torch.no_grad()
def segmented(net: UNet, hu: np.ndarray) -> np.ndarray:
    """Classes that the network finds in a volume (Z, Y, X), uint8."""
    return torch.cat([net(part).argmax(1) for part in inputs(hu).split(BATCH)]).numpy().astype(np.uint8)


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """2 |A ∩ B| / (|A| + |B|) of two masks."""
    total = int(found.sum()) + int(truth.sum())
    return 2.0 * int((found & truth).sum()) / total if total else float("nan")


# --- Continuity --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usual:
    """Overlaps of a structure in held-out heads: median and 5th percentile by place, and each head's `worst`."""

    median: np.ndarray
    low: np.ndarray
    worst: np.ndarray


def overlaps(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place (0 … 1 from the first slice that shows a structure to the last) and overlap of every interface between
    them, mask (Z, Y, X) -> (n,), (n,)."""
    seen = np.flatnonzero(mask.sum(axis=(1, 2)) >= LEAST_PIXELS)
    if len(seen) < 2:
        return np.zeros(0), np.zeros(0)
    part = mask[seen[0] : seen[-1] + 1]
    wide = np.stack([ndimage.binary_dilation(m) for m in part])
    shared = (part[:-1] & wide[1:]).sum(axis=(1, 2)) + (part[1:] & wide[:-1]).sum(axis=(1, 2))
    sizes = part.sum(axis=(1, 2))
    place = (np.arange(len(part) - 1) + 0.5) / (len(part) - 1)
    return place, shared / np.maximum(1, sizes[:-1] + sizes[1:])


def usual(masks: Sequence[np.ndarray]) -> Usual:
    """What is usual in the masks of held-out heads. Each fifth of the way looks at its neighbours too."""
    pairs = [overlaps(m) for m in masks]
    place, overlap = (np.concatenate(column) for column in zip(*pairs))
    near = [overlap[np.abs(place - centre) <= 1.0 / PLACES] for centre in _centres()]
    median, low = (np.array([np.percentile(v, q) if len(v) else 0.0 for v in near]) for q in (50, 5))
    base = Usual(median, low, np.zeros(0))
    return replace(base, worst=np.array([worst(m, base) for m in masks]))


def worst(mask: np.ndarray, base: Usual) -> float:
    """Mean over a structure's two worst interfaces of (overlap - median) / (median - 5th percentile); NaN where fewer
    than two slices show it."""
    place, overlap = overlaps(mask)
    median, low = (np.interp(place, _centres(), v) for v in (base.median, base.low))
    found = np.sort((overlap - median) / np.maximum(median - low, 0.02))
    return float(found[:2].mean()) if len(found) else float("nan")


def score(value: float, base: Usual) -> int:
    """3, 2 or 1 for a volume's `worst` (see the module's head)."""
    held_out = base.worst[np.isfinite(base.worst)]
    if not len(held_out) or not np.isfinite(value):
        return 1
    low, middle = np.percentile(held_out, (5, 50))
    return 3 if value >= low else 2 if value >= low - (middle - low) else 1


def _centres() -> np.ndarray:
    return (np.arange(PLACES) + 0.5) / PLACES


def shifted(hu: np.ndarray, pixels: int) -> np.ndarray:
    """Every fourth slice moved in plane by so many pixels."""
    broken = hu.copy()
    for z in range(2, len(hu), 4):
        broken[z] = np.roll(hu[z], pixels, axis=1)
    return broken


def foreign(hu: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Every fourth slice taken from another head, at the same depth."""
    broken = hu.copy()
    for z in range(2, min(len(hu), len(other)), 4):
        broken[z] = other[z]
    return broken


def generated(study: Study) -> dict[str, list[np.ndarray]]:
    """HU of the checkpoint's volumes, and of those before calibration where there was one."""
    out, count = study.work / "volumes", study.budget.volumes
    settings = GenerateSettings(count=count, seed=study.seed, batch=8, nifti=False, device=study.device)
    generate(study.checkpoint or release.CHECKPOINT, out, settings, release.ICNET)
    sets: dict[str, list[np.ndarray]] = {"generated": [], "before IC-Net": []}
    for _, raw, final in results(out, count):
        sets["generated"].append(final.hu)
        if raw is not None:
            sets["before IC-Net"].append(raw.hu)
    return {title: volumes for title, volumes in sets.items() if volumes}


def figure(shown: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Four slices of a volume of each set, and what was found in them."""
    colours = ListedColormap(["black", "white", "gold", "orange", "deepskyblue", "blue", "red", "magenta", "lime"])
    picture = Figure(figsize=(12, 1.65 * len(shown)), dpi=110, layout="constrained")
    axes = picture.subplots(len(shown), 8, squeeze=False)
    for line, (title, (hu, found)) in zip(axes, shown.items()):
        for column, share in enumerate((0.35, 0.5, 0.65, 0.8)):
            z = int(share * len(hu))
            line[2 * column].imshow(hu[z], cmap="gray", vmin=BRAIN.lo, vmax=BRAIN.hi)
            line[2 * column + 1].imshow(found[z], cmap=colours, vmin=0, vmax=8, interpolation="nearest")
        line[0].set_ylabel(title)
    for one in axes.ravel():
        one.set_xticks([])
        one.set_yticks([])
    return picture


def main(argv: Sequence[str] | None = None) -> None:
    study = arguments("table2", __doc__, argv, stored=False, given_model=True)
    recipe = load_generator(study.checkpoint or release.CHECKPOINT).recipe
    grid = PhantomSettings(size=recipe.size, fov_mm=recipe.size * recipe.spacing_mm[1], slice_mm=recipe.spacing_mm[0])
    grid = replace(grid, anatomy=study.anatomy)
    study = replace(study, budget=replace(study.budget, size=recipe.size))
    kind = "anatomy" if study.anatomy else "heads"
    folder, count = study.work / f"{kind}-{recipe.size}", max(3, study.budget.volumes)
    net = segmenter(study, labelled(folder, range(study.budget.heads), replace(grid, split=(1, 0, 0))))
    unseen = range(HELD_OUT_SEED, HELD_OUT_SEED + (1 + REFERENCE) * count)
    held = labelled(folder, unseen, replace(grid, split=(0, 0, 1)))
    rest, reference = held[:count], held[count:]
    made = generated(study)
    sets = {
        "held-out": [hu for hu, _ in rest],
        **made,
        "shifted": [shifted(hu, round(8 / recipe.spacing_mm[1])) for hu, _ in rest],
        "of another head": [foreign(hu, rest[(i + 1) % len(rest)][0]) for i, (hu, _) in enumerate(rest)],
    }
    found = {title: [segmented(net, hu) for hu in volumes] for title, volumes in sets.items()}
    of_reference = [segmented(net, hu) for hu, _ in reference]
    rows = {}
    for number, name in enumerate(STRUCTURES, start=1):
        base = usual([labels == number for labels in of_reference])
        row = {
            "Dice": float(np.nanmean([dice(f == number, t == number) for f, (_, t) in zip(found["held-out"], rest)]))
        }
        for title, labels in found.items():
            row[title] = float(np.mean([score(worst(one == number, base), base) for one in labels]))
        rows[name] = row
    shown = {title: (sets[title][0], found[title][0]) for title in ("held-out", "generated", "shifted")}
    save_figure(figure(shown), study.out / "table2.png")
    caption = (
        "**Table 2.** Continuity of eight structures from slice to slice, 1 to 3, mean over "
        f"{len(made['generated'])} generated and {count} held-out volumes, by a stated rule (`studies/table2.py`) in "
        f"what a segmentation network finds, against {len(reference)} other held-out heads; "
        "Dice: how well it finds them in held-out heads. shifted, of another head: held-out heads with every fourth "
        "slice moved by 8 mm, or taken from another head."
    )
    write_results(study, rows, caption)


if __name__ == "__main__":
    command(main)
