"""How well labelled pathology is found, against left-right asymmetry and an atlas of normal heads.

    python bench/anomaly.py [CHECKPOINT] --reference NORMAL_VAL --normal NORMAL_TEST --ill ILL_TEST
                            [--methods noising neighbours] [--draws 4] [--noises 0.05 0.4] [--count 60] [--some 10]
                            [--cache runs/anomaly] [--out docs/results/anomaly.png]

The three folders are phantoms with labels, as `slicewise phantom` writes them: normal ones to measure the reference,
and normal and ill ones of other persons to judge. Draws are kept in the cache, from where a bench that was stopped goes
on.
Every method is scored in one way (`slicewise.anomaly.score`): its pseudo-normal heads, the smoothed residual, and z by
what the normal reference heads leave.

- noising, neighbours: `slicewise anomaly`, the release checkpoint by default
- left-right: one pseudo-normal head, the reflection in the midsagittal plane
- atlas: one pseudo-normal head, the mean of the reference heads, laid on by the box of the head

Prints Markdown tables with 95 % bootstrap intervals over heads: all methods; by kind of pathology; by the number of
draws; with --noises, by the noise put on, of `--some` heads of each folder.

- voxels: of the judged ones of an ill head (brain, skull about it), area under ROC and under precision-recall (its
  chance level is the lesion's share), best Dice over thresholds; means over ill heads whose lesion is judged
- slices: those with 50 mm2 of lesion or more against all others of ill and normal heads
- heads: ill against normal ones by the head's score
- false findings: regions a normal head at z of 4 and 0.3 cm3; found: ill heads with a region that meets the lesion
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata

from slicewise.anomaly.baselines import from_frame, in_frame, mirrored
from slicewise.anomaly.draws import judged_slices
from slicewise.anomaly.reference import Judged, measure_normal
from slicewise.anomaly.run import drawn, voxels_of
from slicewise.anomaly.score import find_regions, slice_scores, studentised, tissue_map, volume_score
from slicewise.anomaly.settings import AnomalySettings
from slicewise.data.phantom import LABELS
from slicewise.data.store import first_head_slice
from slicewise.diffusion.denoiser import Denoiser
from slicewise.hu import BRAIN
from slicewise.io.archive import read_volume
from slicewise.io.tensors import sha256
from slicewise.pyramid import Pyramid, load_generator
from slicewise.release import CHECKPOINT
from slicewise.runtime import core_dtype
from slicewise.volume import Volume

# Kinds of pathology by the words that a phantom's description begins with, and the labels that they have.
KINDS = {
    "intracerebral bleed": ("bleed", "oedema"),
    "extradural bleed": ("bleed",),
    "subdural bleed": ("bleed",),
    "subarachnoid bleed": ("bleed",),
    "intraventricular bleed": ("bleed",),
    "old infarct": ("infarct",),
    "recent infarct": ("infarct",),
    "tumour": ("tumour", "oedema"),
    "calcification": ("calcification",),
    "skull fracture": ("fracture",),
}
SLICE_MM2 = 50.0
ATLAS_SLICES = 40
SHOWN = ("intracerebral bleed", "subdural bleed", "old infarct", "tumour")
USUAL = AnomalySettings()


@dataclass(frozen=True)
class Head:
    """A phantom: the scan, where its lesion is and of what kind ("" for a normal head), where residuals are judged."""

    volume: Volume
    lesion: np.ndarray
    kind: str
    tissue: np.ndarray
    depth_mm: np.ndarray


@dataclass(frozen=True)
class Scored:
    """A head as a method sees it."""

    head: Head
    z: np.ndarray
    slices: np.ndarray

    @property
    def score(self) -> float:
        return volume_score(self.slices)


# The pseudo-normal versions of a head; `normal` is its place among the reference heads, -1 for others.
Method = Callable[[Head, int], Sequence[np.ndarray]]


def read_heads(folder: Path, model: Denoiser | Pyramid, count: int) -> list[Head]:
    """The phantoms of a folder."""
    found = []
    for series in sorted((folder / "dicom").iterdir())[:count]:
        volume = read_volume(series).volume
        labels = np.asarray(nibabel.load(folder / "labels" / f"{series.name}.nii.gz").dataobj).transpose(2, 1, 0)
        said = json.loads((folder / "labels" / f"{series.name}.json").read_text())["pathology"]
        kind = next((k for k in KINDS if said.startswith(k)), "")
        assert bool(said) == bool(kind), said
        lesion = np.isin(labels, [LABELS[name] for name in KINDS.get(kind, ())])
        slices = judged_slices(model, volume, USUAL)
        tissue = tissue_map(volume.hu, volume.spacing, slices)
        depth = (np.arange(len(volume.hu)) - first_head_slice(volume.hu)) * volume.spacing[0]
        found.append(Head(volume, lesion & (tissue > 0), kind, tissue, depth))
    return found


def drawing(
    model: Denoiser | Pyramid, checkpoint: str, settings: AnomalySettings, cache: Path, head: Head, normal: int
) -> list[np.ndarray]:
    """The draws of `slicewise anomaly`."""
    s = settings
    folder = cache / f"{s.method}-{s.noise:g}-{s.plan_noise:g}-{s.steps}-{s.gap}" / voxels_of(head.volume)[:16]
    return drawn(model, checkpoint, head.volume, settings, folder)


def by_atlas(frames: np.ndarray, head: Head, normal: int) -> list[np.ndarray]:
    """The mean of the reference heads, without the head itself where it is one of them."""
    first = first_head_slice(head.volume.hu)
    mean = np.delete(frames, normal, axis=0).mean(axis=0) if normal >= 0 else frames.mean(axis=0)
    return [np.concatenate([head.volume.hu[:first], from_frame(mean, head.volume.hu[first:])])]


def by_reflection(head: Head, normal: int) -> list[np.ndarray]:
    return [mirrored(head.volume.hu)]


def scored(method: Method, reference: list[Head], heads: list[Head], smooth_mm: float, draws: int = 0) -> list[Scored]:
    """Heads by a method, of whose pseudo-normal versions the first `draws` count (0: all)."""

    def judged(head: Head, normal: int) -> Judged:
        made, space = method(head, normal)[: draws or None], head.volume.spacing
        values = studentised(head.volume.hu, made, head.tissue, space, smooth_mm)
        return Judged.of(values, head.tissue, head.depth_mm, space)

    normal = measure_normal([judged(head, i) for i, head in enumerate(reference)], "", USUAL, "")
    out = []
    for head in heads:
        one = judged(head, -1)
        z = normal.z(one.studentised, one.cells)
        out.append(Scored(head, z, slice_scores(z, head.tissue, head.volume.spacing)))
    return out


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve, by ranks; NaN where one class is missing."""
    positive = int(truth.sum())
    negative = len(truth) - positive
    if not (positive and negative):
        return float("nan")
    ranks = rankdata(scores)[truth].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def precision_recall(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Average precision, and the best Dice over all thresholds."""
    hits = truth[np.argsort(-scores, kind="stable")].cumsum()
    called, positive = np.arange(1, len(truth) + 1), truth.sum()
    gained = np.diff(hits, prepend=0)
    return float((hits / called * gained).sum() / positive), float((2 * hits / (called + positive)).max())


def by_voxel(one: Scored) -> tuple[float, float, float]:
    """Area under ROC and precision-recall and best Dice in an ill head."""
    inside = one.head.tissue > 0
    scores, truth = np.abs(one.z[inside]), one.head.lesion[inside]
    return auroc(scores, truth), *precision_recall(scores, truth)


def by_slice(many: Sequence[Scored]) -> float:
    """Area under ROC of slices."""
    scores, truth = [], []
    for one in many:
        area = one.head.lesion.sum(axis=(1, 2)) * np.prod(one.head.volume.spacing[1:])
        held = np.isfinite(one.slices) & ((area == 0) | (area >= SLICE_MM2))
        scores.append(one.slices[held])
        truth.append(area[held] > 0)
    return auroc(np.concatenate(scores), np.concatenate(truth))


def by_head(many: Sequence[Scored]) -> float:
    return auroc(np.array([one.score for one in many]), np.array([bool(one.head.kind) for one in many]))


def regions_of(one: Scored) -> tuple[int, bool]:
    """How many regions a head has, and whether one meets the lesion."""
    marked, regions = find_regions(one.z, one.z, one.head.volume.spacing, USUAL.z, USUAL.region_cm3)
    return len(regions), bool((marked[one.head.lesion] > 0).any())


def interval(measure: Callable[[list], float], items: Sequence, rounds: int = 500, digits: int = 2) -> str:
    """A measure of a list of heads with its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    if not len(items):
        return "–"
    drawn_again = [measure([items[i] for i in rng.integers(len(items), size=len(items))]) for _ in range(rounds)]
    low, high = np.nanquantile(drawn_again, [0.025, 0.975])
    return f"{measure(list(items)):.{digits}f} ({low:.{digits}f}, {high:.{digits}f})"


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


COLUMNS = ("voxels: ROC", "voxels: PR", "best Dice", "slices: ROC", "heads: ROC", "false findings", "found")


def row(many: list[Scored]) -> list[str]:
    """The columns of a method."""
    ill = [by_voxel(one) for one in many if one.head.lesion.any()]
    regions = [(one.head.kind, *regions_of(one)) for one in many]
    return [
        *(interval(mean, [one[i] for one in ill]) for i in range(3)),
        interval(by_slice, many, 200),
        interval(by_head, many),
        interval(mean, [count for kind, count, _ in regions if not kind], digits=1),
        interval(mean, [met for kind, _, met in regions if kind]),
    ]


def table(title: str, head: Sequence[str], rows: Iterator[tuple[str, list[str]]]) -> None:
    print(f"\n{title}\n\n| | {' | '.join(head)} |\n| --- |{' ---: |' * len(head)}", flush=True)
    for name, cells in rows:
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def by_kind(found: dict[str, list[Scored]]) -> Iterator[tuple[str, list[str]]]:
    """For each kind how many, its voxels and heads by every method."""
    for kind in KINDS:
        ill = [[one for one in many if one.head.kind == kind] for many in found.values()]
        cells = [str(len(ill[0]))]
        for some, many in zip(ill, found.values()):
            voxels = [by_voxel(one)[0] for one in some if one.head.lesion.any()]
            normal = [one for one in many if not one.head.kind]
            cells.append(f"{np.mean(voxels):.2f}" if voxels else "–")
            cells.append(f"{by_head([*some, *normal]):.2f}" if some else "–")
        yield kind, cells


def picture(found: dict[str, list[Scored]], pseudo: Method, out: Path) -> None:
    """A slice of the first head of some kinds: the scan, its lesion outlined, the drawn pseudo-normal slice, and |z| up
    to 8 by every method."""
    rows = []
    first = next(iter(found.values()))
    for kind in SHOWN:
        places = [i for i, one in enumerate(first) if one.head.kind == kind and one.head.lesion.any()]
        if not places:
            continue
        head = first[places[0]].head
        z = int(head.lesion.sum(axis=(1, 2)).argmax())
        scan, drawn_slice = (_grey(hu[z]) for hu in (head.volume.hu, np.mean(pseudo(head, -1), axis=0)))
        lesion = head.lesion[z]
        inner = lesion[1:-1, 1:-1] & lesion[:-2, 1:-1] & lesion[2:, 1:-1] & lesion[1:-1, :-2] & lesion[1:-1, 2:]
        rim = lesion & ~np.pad(inner, 1)
        outlined = np.where(rim, 255, scan)
        maps = [(np.clip(np.abs(many[places[0]].z[z]) / 8, 0, 1) * 255).astype(np.uint8) for many in found.values()]
        rows.append(np.hstack([np.kron(p, np.ones((2, 2), np.uint8)) for p in (scan, outlined, drawn_slice, *maps)]))
    if rows:
        Image.fromarray(np.vstack(rows).astype(np.uint8)).save(out)
        print(f"\n{out}: scan, lesion outlined, drawn, |z| up to 8 by {', '.join(found)}")


def _grey(hu: np.ndarray) -> np.ndarray:
    return (255 * np.clip((hu - BRAIN.lo) / (BRAIN.hi - BRAIN.lo), 0, 1)).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    for name in ("reference", "normal", "ill"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=["noising"])
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--noises", type=float, nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--some", type=int, default=10)
    parser.add_argument("--cache", type=Path, default=Path("runs/anomaly"))
    parser.add_argument("--out", type=Path, default=Path("anomaly.png"))
    a = parser.parse_args()
    began, checkpoint = time.monotonic(), sha256(a.checkpoint)
    model = load_generator(a.checkpoint, core_dtype(torch.device("cpu")))
    reference, normal, ill = (read_heads(folder, model, a.count) for folder in (a.reference, a.normal, a.ill))
    heads = [*normal, *ill]
    usual = AnomalySettings(draws=a.draws, steps=a.steps)
    frames = np.stack([in_frame(h.volume.hu[first_head_slice(h.volume.hu) :], ATLAS_SLICES) for h in reference])
    methods: dict[str, Method] = {
        name: partial(drawing, model, checkpoint, replace(usual, method=name), a.cache) for name in a.methods
    }
    methods |= {"left-right": by_reflection, "atlas": partial(by_atlas, frames)}
    found = {name: scored(method, reference, heads, usual.smooth_mm) for name, method in methods.items()}
    said = f"{len(ill)} ill and {len(normal)} normal heads, {len(reference)} reference heads, {a.draws} draws"
    table(said, COLUMNS, ((name, row(many)) for name, many in found.items()))
    kinds = [f"{name}: {what}" for name in found for what in ("voxels", "heads")]
    table("By kind, area under ROC", ["heads", *kinds], by_kind(found))
    for name in a.methods:
        counts = [n for n in (1, 2, 4, 8, 16) if n <= a.draws]
        again = ((f"{n}", row(scored(methods[name], reference, heads, usual.smooth_mm, n))) for n in counts)
        table(f"{name}, by draws", COLUMNS, again)
    few = [*normal[: a.some], *ill[: a.some]]
    rows = []
    for noise in a.noises:
        settings = replace(usual, draws=1, noise=noise, plan_noise=2 * noise)
        method = partial(drawing, model, checkpoint, settings, a.cache)
        rows.append((f"{noise:g}", row(scored(method, reference[: a.some], few, usual.smooth_mm))))
    if rows:
        table(f"noising, one draw, by noise (twice as much on the plan), {len(few)} heads", COLUMNS, iter(rows))
    if a.methods:
        picture(found, methods[a.methods[0]], a.out)
    print(f"\n{time.monotonic() - began:.0f} s, {torch.get_num_threads()} thread(s)")


if __name__ == "__main__":
    main()
