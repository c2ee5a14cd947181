"""Steps that the studies share: heads to train on, models to train, volumes to draw. Each is skipped where it is done
already and resumes where it stopped, so a study is resumed by running it again."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slicewise.data.phantom import SIZES, PhantomSettings, store_phantoms
from slicewise.data.resample import Grid, resample_volume
from slicewise.data.store import Store, open_store, put_volume
from slicewise.diffusion.settings import SigmaDistribution, WindowTask
from slicewise.errors import UserError
from slicewise.generate import generate, results
from slicewise.hu import HUScale
from slicewise.io.atomic import write_whole
from slicewise.io.folders import is_store
from slicewise.pyramid import load_generator
from slicewise.release import CHECKPOINT
from slicewise.sampling import ChainSettings, GenerateSettings
from slicewise.settings import fill, preset
from slicewise.training.denoiser import train_denoiser
from slicewise.training.gan import train_gan
from slicewise.training.settings import DenoiserTraining, GANTraining, SliceVAETraining
from slicewise.training.slice_vae import train_slice_vae
from slicewise.volume import Volume

PRESETS = {64: "tiny-64", 128: "head-128", 256: "head-256"}


@dataclass(frozen=True)
class Budget:
    """What a study may spend; the same for every model in it.

    Attributes
    ----------
    size : pixels per side.
    heads : phantoms to train on and compare with.
    images : slices that each model sees in training.
    volumes : volumes drawn from each model.
    levels : noise levels of the paper's sampler (it uses 1000, which is 2000 evaluations a slice).
    """

    size: int
    heads: int
    images: int
    volumes: int
    levels: int


FULL = Budget(size=128, heads=400, images=200_000, volumes=40, levels=200)
QUICK = Budget(size=64, heads=12, images=480, volumes=2, levels=6)


@dataclass(frozen=True)
class Study:
    """Where a study works and writes, on what data (None: it makes heads of its own, with labels), with what budget;
    the checkpoint to draw from in place of one that it trains (None: it trains its own); and the label maps that its
    heads are made from (None: procedural heads)."""

    name: str
    work: Path
    out: Path
    store: Store | None
    budget: Budget
    seed: int
    device: str
    checkpoint: Path | None = None
    anatomy: Path | None = None

    @property
    def conditions(self) -> str:
        """The caption's second half: what the numbers were made with."""
        b, store = self.budget, self.store
        phantoms = store is None or "phantom" in store.records[0].source
        origin = "procedural head phantoms" if phantoms else store.path.name
        origin = "head phantoms of real anatomy" if self.anatomy else origin
        count = b.heads if store is None else len(store.select("train"))
        return (
            f"{origin}, {b.size} × {b.size} pixels, {count} training heads; "
            f"every {'other ' if self.checkpoint else ''}model saw {b.images} slices; seed {self.seed}."
        )


def arguments(
    name: str,
    description: str | None,
    argv: Sequence[str] | None = None,
    shared: str = "",
    stored: bool = True,
    given_model: bool = False,
) -> Study:
    """The command line that every study has, as a `Study`; makes the heads where no store is given, and has none where
    it takes none (`stored`). `shared` names a study whose models this one takes, `given_model` says that it can draw
    from a checkpoint instead."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/studies"), help="runs and volumes; kept between calls")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="figure and table")
    if stored:
        parser.add_argument("--store", type=Path, help="prepared store to take instead of phantoms")
    if given_model:
        parser.add_argument("--checkpoint", help="'release' or a file: draw from it, as it is trained, at its size")
        parser.add_argument("--anatomy", type=Path, help="folder of label maps: make the labelled heads from them")
    parser.add_argument("--quick", action="store_true", help="minutes on two cores: shows that it runs, proves nothing")
    for field, text in (("heads", "phantoms"), ("images", "slices seen by each model"), ("volumes", "drawn from each")):
        parser.add_argument(f"--{field}", type=int, help=text)
    parser.add_argument("--levels", type=int, help="noise levels of the sampler")
    parser.add_argument("--size", type=int, help="pixels per side of the phantoms")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    a = parser.parse_args(argv)
    base = QUICK if a.quick else FULL
    given = {k: getattr(a, k) for k in ("heads", "images", "volumes", "levels", "size") if getattr(a, k) is not None}
    budget = replace(base, **given)
    work = a.work / ("quick" if a.quick else "full")
    checkpoint = None
    if given_model and a.checkpoint:
        checkpoint = CHECKPOINT if a.checkpoint == "release" else Path(a.checkpoint)
        budget = replace(budget, size=load_generator(checkpoint).recipe.size)
    store = None
    if stored:
        store = open_store(a.store) if a.store else heads(work / f"heads-{budget.size}", budget.size, budget.heads)
        budget = replace(budget, size=store.records[0].shape[1])
    anatomy = a.anatomy if given_model else None
    return Study(name, work / (shared or name), a.out, store, budget, a.seed, a.device, checkpoint, anatomy)


def command(main: Callable[[], None]) -> None:
    """Run a study from the command line: what the user did wrong ends in one line."""
    try:
        main()
    except UserError as problem:
        sys.exit(f"{Path(sys.argv[0]).stem}: {problem}")


def heads(folder: Path, size: int, count: int) -> Store:
    """A store of `count` phantoms. Below the phantom's smallest size they are made there and averaged down."""
    settings = PhantomSettings(size=max(size, min(SIZES)))
    if size >= min(SIZES):
        return store_phantoms(folder, count, settings=settings)
    made = folder.with_name(f"heads-{settings.size}")
    fine = store_phantoms(made, count, settings=settings)
    held = {r.id for r in open_store(folder).records} if is_store(folder) else set()
    for record in fine.records:
        if record.id not in held:
            grid = Grid(size=size, fov_mm=settings.fov_mm, slice_mm=settings.slice_mm, crop_air_above=False)
            volume = resample_volume(fine.volume(record), grid)
            put_volume(folder, volume, id=record.id, patient=record.patient, split=record.split, source=record.source)
    return open_store(folder)


def table(command: str, size: int) -> dict[str, Any]:
    """The preset's settings of a command, for slices of `size` pixels."""
    return preset(command, PRESETS.get(size, "tiny-64" if size < 128 else "head-256"))


def drawn_schedule(study: Study, sigma: tuple[float, float]) -> list[Volume]:
    """Volumes of Figure 1's ASCII(2) of a noise schedule (σmin, σmax), trained where it is not yet."""
    name = schedule_run(sigma)
    run = trained(study, name, paper_denoiser(study, *sigma))
    return list(drawn(study, name, run, paper_sampler(study)))


def held_out(study: Study) -> list[Volume]:
    """As many heads as are drawn, or as there are, that no model was trained on."""
    held = study.store.select(held_out_split(study.store))
    return [study.store.volume(r) for r in held[: study.budget.volumes]]


def held_out_split(store: Store) -> str:
    """The split that stands for real heads: test, or val where that has fewer than two; train where neither has."""
    return next((split for split in ("test", "val") if len(store.select(split)) > 1), "train")


def paper_denoiser(
    study: Study,
    sigma_min: float,
    sigma_max: float,
    scale: HUScale | None = None,
    slices: int = 2,
    joint: bool = True,
) -> DenoiserTraining:
    """ASCII(K) as the paper trains it (joint, log-uniform noise levels, linear whole range) on the size's network."""
    base = fill(DenoiserTraining(), table("train", study.budget.size), "preset")
    return replace(
        base,
        slices=slices,
        task=WindowTask(joint=joint),
        position=False,
        flip=False,
        starts=0.0,
        crop=(0, 0),
        scale=scale or HUScale(),
        sigma=SigmaDistribution(uniform=1.0, sigma_min=sigma_min, sigma_max=sigma_max),
        steps=steps_for(study.budget.images, base.batch),
        validations=0,
        samples=0,
        seed=study.seed,
        device=study.device,
    )


def schedule_run(sigma: tuple[float, float]) -> str:
    """Name of Figure 1's run of a noise schedule (σmin, σmax), which other studies take."""
    return f"sigma-{sigma[0]:g}-{sigma[1]:g}"


def gan(study: Study, network: str) -> GANTraining:
    """The size's GAN of a kind, with the study's budget."""
    base = fill(GANTraining(), table("train-gan", study.budget.size), "preset")
    steps = steps_for(study.budget.images, base.batch)
    return replace(base, network=network, steps=steps, samples=0, seed=study.seed, device=study.device)


def steps_for(images: int, batch: int) -> int:
    return max(1, math.ceil(images / batch))


def trained(study: Study, name: str, settings: DenoiserTraining | GANTraining | SliceVAETraining) -> Path:
    """The run folder of a model of the study, trained to its end."""
    run = study.work / name
    if isinstance(settings, GANTraining):
        train_gan(study.store, run, settings)
    elif isinstance(settings, SliceVAETraining):
        train_slice_vae(study.store, run, settings)
    else:
        train_denoiser(study.store, run, settings)
    return run


def drawn(study: Study, name: str, checkpoint: Path, chain: ChainSettings | None = None) -> Iterator[Volume]:
    """The volumes of a model of the study, made by `slicewise generate` without calibration."""
    out = study.work / f"{name}-volumes"
    count = study.budget.volumes
    settings = GenerateSettings(
        count=count, seed=study.seed, chain=chain or ChainSettings(), calibrate="off", nifti=False, device=study.device
    )
    generate(checkpoint, out, settings)
    return (volume for _, _, volume in results(out, count))


def paper_sampler(study: Study, sampler: str = "pc") -> ChainSettings:
    """Predictor-corrector over geometric noise levels, as the paper samples."""
    levels = study.budget.levels
    return ChainSettings(sampler=sampler, steps=levels, spacing="geometric", snr=0.15, known_sigma=0.02)  # type: ignore[arg-type]


def write_results(study: Study, rows: dict[str, dict[str, float]], caption: str, more: str = "") -> None:
    """The study's numbers as <name>.json and, with the caption, as a Markdown table, which is printed too; `more` goes
    below the table."""
    budget = {k: getattr(study.budget, k) for k in study.budget.__dataclass_fields__}
    about = {"budget": budget, "seed": study.seed, "data": study.store and study.store.fingerprint, "rows": rows}
    text = "\n\n".join(part for part in (f"{caption} {study.conditions}", markdown(rows), more) if part) + "\n"
    write_whole(study.out / f"{study.name}.md", text.encode())
    print(text)
    finite = json.dumps(about, indent=2, default=float).replace("NaN", "null")
    write_whole(study.out / f"{study.name}.json", (finite + "\n").encode())


def markdown(rows: dict[str, dict[str, float]]) -> str:
    """Numbers by row and column as a Markdown table."""
    columns = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(_number(row[c]) for c in columns)} |" for name, row in rows.items()]
    return "\n".join(lines)


def _number(value: float) -> str:
    if isinstance(value, float) and not np.isfinite(value):
        return "–"
    return f"{value:.4g}"
