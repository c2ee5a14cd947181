"""A release checkpoint's volumes against held-out ones: every target of the release, and what a reader asks next.

    python bench/release.py --checkpoint W --icnet I --generated RUN --held-out STORE --train STORE [--out docs/results]
                            [--picture release.png]

RUN is a folder of `slicewise generate` (its volumes before calibration are measured too, where it keeps them);
--held-out is a prepared store of heads that the checkpoint has not seen, all of which are used; --train is the store it
was trained on, of which as many heads are measured, too. Prints Markdown and writes a picture, generated and held-out
heads side by side. Volumes pass through one at a time. Fréchet distances need the extractor's weights (see
`slicewise.metrics.features`). For copies of training heads see `slicewise evaluate --train`.
"""

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from slicewise.checkpoint import weights_file
from slicewise.data.store import open_store
from slicewise.errors import UserError
from slicewise.generate import results
from slicewise.hu import BRAIN, WHOLE, Window
from slicewise.io.tensors import load_tensors
from slicewise.metrics.estimate import bootstrap, percentiles
from slicewise.metrics.features import PLANES, Extractor, efficientnet_lite0, plane_features
from slicewise.metrics.frechet import frechet_of_features, frechet_score, real_floor
from slicewise.metrics.reference import VolumeStats, measure
from slicewise.metrics.tissue import brain_mask, noise_power_spectrum
from slicewise.reporting.montage import save_montage
from slicewise.volume import Volume

TISSUE_TARGET_HU = 1.0
STEP_TARGET_RATIO = 1.1
SIZE_TARGET_MB = 40.0
WINDOWS = {"whole range": WHOLE, "brain window": BRAIN}
TISSUES = {"csf": "CSF", "grey": "grey matter", "white": "white matter", "brain": "whole brain"}
FREQUENCIES = np.arange(0.02, 0.26, 0.01)  # per mm


@dataclass
class Survey:
    """What is kept of a set of volumes: `stats` and `spectra` (normalised NPS at `FREQUENCIES`, times frequency) one a
    volume, features of middle slices (n, d) by plane and window."""

    stats: list[VolumeStats] = field(default_factory=list)
    spectra: list[np.ndarray] = field(default_factory=list)
    slices: list[int] = field(default_factory=list)
    features: dict[tuple[str, Window], list[np.ndarray]] = field(default_factory=dict)

    def add(self, volume: Volume, extractor: Extractor, anatomy: bool = True) -> None:
        """Measure one volume; without `anatomy` its features only."""
        for key, rows in plane_features([volume], extractor, list(WINDOWS.values())).items():
            self.features.setdefault(key, []).append(rows)
        if not anatomy:
            return
        self.slices.append(len(volume.hu))
        self.stats.append(measure(volume))
        f, power = noise_power_spectrum(volume.hu, brain_mask(volume.hu, volume.spacing), volume.spacing)
        if len(f):
            weight = np.interp(FREQUENCIES, f, power * f)
            self.spectra.append(weight / weight.sum())

    def scalar(self, name: str) -> np.ndarray:
        values = np.array([s.scalars[name] for s in self.stats])
        return values[np.isfinite(values)]

    def matrix(self, plane: str, window: Window) -> np.ndarray:
        return np.concatenate(self.features[plane, window])

    @property
    def steps(self) -> list[np.ndarray]:
        return [s.steps for s in self.stats if s.steps.size]


def mean_sd(values: np.ndarray, digits: int = 2) -> str:
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else "–"


def pooled_step(survey: Survey) -> float:
    return float(np.concatenate(survey.steps).mean()) if survey.steps else math.nan


def step_ratio_interval(a: Survey, b: Survey, rounds: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval, over volumes, of the ratio of mean interface steps."""
    rng = np.random.default_rng(0)

    def drawn(survey: Survey) -> float:
        return float(
            np.concatenate([survey.steps[i] for i in rng.integers(0, len(survey.steps), len(survey.steps))]).mean()
        )

    low, high = percentiles([drawn(a) / drawn(b) for _ in range(rounds)])
    return float(low), float(high)


def distance_interval(a: np.ndarray, b: np.ndarray, value: float, rounds: int = 500) -> tuple[float, float]:
    """95 % bootstrap interval, over volumes, of the Fréchet distance `value` of two sets of features (n, d)."""
    score, rng, (n, m) = frechet_score(np.concatenate([a, b])), np.random.default_rng(0), (len(a), len(b))
    return bootstrap(lambda: score(rng.integers(0, n, n), n + rng.integers(0, m, m)), value, rounds)


def spectrum(survey: Survey) -> np.ndarray:
    return np.mean(survey.spectra, axis=0)


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Half the area between two normalised spectra: 0 the same, 1 apart."""
    return float(np.abs(a - b).sum() / 2)


def met(condition: bool) -> str:
    return "met" if condition else "**not met**"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def tissue_table(sets: dict[str, Survey]) -> str:
    """Means and spreads between volumes, and differences from the held-out set."""
    held, final = sets["held-out"], sets["generated"]
    names = list(sets)
    rows = []
    for key, title in TISSUES.items():
        error = final.scalar(key).mean() - held.scalar(key).mean()
        rows.append([f"{title}, HU", *(mean_sd(sets[n].scalar(key)) for n in names), f"{error:+.2f}"])
    between = [f"{s.scalar('brain').std(ddof=1):.2f}" for s in sets.values()]
    ratio = final.scalar("brain").std(ddof=1) / held.scalar("brain").std(ddof=1)
    rows.append(["spread of the brain's mean between volumes (SD), HU", *between, f"× {ratio:.2f}"])
    ratio = pooled_step(final) / pooled_step(held)
    steps = [f"{pooled_step(s):.3f}" for s in sets.values()]
    rows.append(["step of the brain's mean HU between slices, HU", *steps, f"× {ratio:.2f}"])
    difference = final.scalar("noise").mean() - held.scalar("noise").mean()
    rows.append(["noise in the brain, HU", *(mean_sd(sets[n].scalar("noise")) for n in names), f"{difference:+.2f}"])
    frequency = [float(spectrum(s) @ FREQUENCIES) for s in sets.values()]
    rows.append(
        [
            "noise: mean frequency, 1/mm",
            *(f"{f:.4f}" for f in frequency),
            f"{frequency[names.index('generated')] - frequency[names.index('held-out')]:+.4f}",
        ]
    )
    apart = [f"{total_variation(spectrum(s), spectrum(held)):.3f}" for s in sets.values()]
    halves = total_variation(np.mean(held.spectra[::2], axis=0), np.mean(held.spectra[1::2], axis=0))
    rows.append([f"noise: spectrum apart from held-out (halves of held-out: {halves:.3f})", *apart, ""])
    rows.append(["slices a volume", *(mean_sd(np.array(s.slices), 1) for s in sets.values()), ""])
    lost = [str(sum(not math.isfinite(v.scalars["brain"]) for v in s.stats)) for s in sets.values()]
    rows.append(["volumes in which no brain is found", *lost, ""])
    return table(["", *names, "generated to held-out"], rows)


def frechet_table(sets: dict[str, Survey], train: Survey | None) -> str:
    held, final = sets["held-out"], sets["generated"]
    n = min(len(held.stats), len(final.stats))
    half = len(held.stats) // 2
    head = ["window, plane", f"generated (n = {len(final.stats)})", "95 % interval"]
    head += [f"{name}" for name in sets if name not in ("held-out", "generated")]
    head += [f"floor: halves of held-out (n = {half})"]
    head += [f"floor: training to held-out (n = {n})", "generated / that floor"] if train else []
    rows = []
    for title, window in WINDOWS.items():
        for plane in PLANES:
            real, made = held.matrix(plane, window), final.matrix(plane, window)
            value = frechet_of_features(made, real)
            low, high = distance_interval(made, real, value)
            row = [f"{title}, {plane}", f"{value:.2f}", f"{low:.2f} … {high:.2f}"]
            for name, survey in sets.items():
                if name not in ("held-out", "generated"):
                    row.append(f"{frechet_of_features(survey.matrix(plane, window), real):.2f}")
            mean, sd = real_floor(real, half)
            row.append(f"{mean:.2f} ± {sd:.2f}")
            if train is not None:
                pool, rng = train.matrix(plane, window), np.random.default_rng(0)
                draws = [rng.choice(len(pool), min(n, len(pool)), replace=False) for _ in range(20)]
                floors = np.array([frechet_of_features(pool[d], real) for d in draws])
                row += [mean_sd(floors) if floors.std() > 1e-9 else f"{floors[0]:.2f}", f"{value / floors.mean():.2f}"]
            rows.append(row)
    return table(head, rows)


def targets_table(sets: dict[str, Survey], size_mb: float) -> str:
    held, final = sets["held-out"], sets["generated"]
    rows = []
    for key in ("grey", "white", "csf"):
        error = final.scalar(key).mean() - held.scalar(key).mean()
        good = abs(error) <= TISSUE_TARGET_HU
        rows.append([f"mean HU of {TISSUES[key]}", f"within {TISSUE_TARGET_HU:g} HU", f"{error:+.2f} HU", met(good)])
    ratio = pooled_step(final) / pooled_step(held)
    low, high = step_ratio_interval(final, held)
    value = f"{ratio:.2f} times ({low:.2f} … {high:.2f})"
    target = f"at most {STEP_TARGET_RATIO:g} times held-out"
    rows.append(["step between slices in the brain", target, value, met(ratio <= STEP_TARGET_RATIO)])
    rows.append(
        ["size of the release", f"at most {SIZE_TARGET_MB:g} MB", f"{size_mb:.1f} MB", met(size_mb <= SIZE_TARGET_MB)]
    )
    return table(["", "target", "found", ""], rows)


def watched(items: Iterable, total: int, title: str) -> Iterator:
    yield from track(items, title, total, console=Console(stderr=True), transient=True)


def survey_run(run: Path, count: int, extractor: Extractor) -> tuple[Survey, Survey | None]:
    """The volumes of a generate run, and the same before calibration where they are kept."""
    final, raw = Survey(), Survey()
    for _, before, volume in watched(results(run, count), count, "generated"):
        final.add(volume, extractor)
        if before is not None:
            raw.add(before, extractor)
    return final, raw if len(raw.stats) == count else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="denoiser: weights file or run folder")
    parser.add_argument("--icnet", type=Path, help="IC-Net: weights file or run folder")
    parser.add_argument("--generated", type=Path, required=True, help="folder of slicewise generate")
    parser.add_argument("--held-out", type=Path, required=True, help="prepared store of unseen heads")
    parser.add_argument("--train", type=Path, help="prepared store that the checkpoint was trained on")
    parser.add_argument("--train-count", type=int, default=200, help="training volumes of the Fréchet floor, at most")
    parser.add_argument("--count", type=int, default=0, help="volumes of either set, at most; 0 takes all")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the picture")
    parser.add_argument("--picture", default="release.png", help="its name")
    options = parser.parse_args()
    record = options.generated / "generate.json"
    if not record.is_file():
        raise UserError(f"--generated {options.generated}: no generate.json here; give a folder of slicewise generate")
    about = json.loads(record.read_text())
    made = len([p for p in (options.generated / "dicom").iterdir() if p.is_dir() and not p.name.startswith(".")])
    count = min(made, options.count or made)
    held_store = open_store(options.held_out)
    held_records = held_store.records[: options.count or None]
    if count < 4 or len(held_records) < 4:
        raise UserError(f"{count} generated and {len(held_records)} held-out volumes: at least four of each are needed")
    models = [p for p in (options.checkpoint, options.icnet) if p is not None]
    metas = [load_tensors(weights_file(p))[1] for p in models]
    size_mb = sum(weights_file(p).stat().st_size for p in models) / 1e6

    extractor = efficientnet_lite0()
    held = Survey()
    for r in watched(held_records, len(held_records), "held-out"):
        held.add(held_store.volume(r), extractor)
    final, raw = survey_run(options.generated, count, extractor)
    sets = {"held-out": held, "generated": final} | ({"before calibration": raw} if raw else {})
    train = None
    if options.train:
        train_store = open_store(options.train)
        records = train_store.select("train")
        seen = {r.sha256 for r in records} & {r.sha256 for r in held_records}
        if seen:
            raise UserError(
                f"--held-out {options.held_out}: {len(seen)} of its volumes are in --train; give unseen ones"
            )
        train = Survey()
        some = records[: options.train_count]
        for number, r in enumerate(watched(some, len(some), "training")):
            train.add(train_store.volume(r), extractor, anatomy=number < len(held_records))

    settings = about["settings"]
    name, step = metas[0].get("name", options.checkpoint.name), metas[0].get("step")
    print(
        f"{count} generated volumes of {name} at step {step} ({settings['chain']['sampler']}, "
        f"{about['nfe_per_slice']} evaluations a slice, IC-Net {settings['calibrate']}, seed {settings['seed']}; "
        f"{about.get('seconds_per_volume', '?')} s a volume), against {len(held_records)} held-out heads. "
        "± is the standard deviation between volumes.\n"
    )
    print(targets_table(sets, size_mb))
    print(f"\n{tissue_table(sets | ({'training': train} if train else {}))}\n")
    print(f"Fréchet distance of the middle slices' features; extractor: {extractor.name}.\n")
    print(frechet_table(sets, train))
    pairs = [v for _, _, v in islice(results(options.generated, count), 3)]
    shown = pairs + [held_store.volume(r) for r in held_records[: len(pairs)]]
    titles = [f"generated {i}" for i in range(len(pairs))] + [f"held-out {i}" for i in range(len(pairs))]
    save_montage(shown, options.out / options.picture, titles)
    print(f"\n![Generated and held-out heads]({options.picture})\n\nPicture: {options.out / options.picture}")


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        raise SystemExit(f"release: {problem}") from None
