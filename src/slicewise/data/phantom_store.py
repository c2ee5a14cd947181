"""Phantoms straight into a prepared store, on their own grid: training data without the way through DICOM."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from slicewise.data.phantom import PHANTOM_VERSION, PhantomSettings, check_settings, make_phantom, write_each
from slicewise.data.store import (
    MANIFEST,
    Store,
    assign_split,
    fill_splits,
    move_patients,
    open_store,
    put_volume,
    write_settings,
)
from slicewise.errors import UserError, output_errors


def store_phantoms(
    out: Path,
    count: int,
    seed: int = 0,
    settings: PhantomSettings | None = None,
    workers: int = 1,
    fractions: tuple[float, float, float] = (0.9, 0.1, 0.0),
) -> Store:
    """Heads `seed` … `seed + count - 1` as a prepared store, split into train, validation and test by patient, a small
    one with two in validation (see `fill_splits`).

    Voxels are exactly those of `make_phantom` (no resampling). Heads that are there already are kept. Raises
    `UserError` for bad settings, a folder that holds phantoms of other settings, or one that cannot be written.
    """
    settings = settings or PhantomSettings()
    check_settings(settings)
    if count < 1 or seed < 0:
        raise UserError(f"--count {count}, --seed {seed}: at least one phantom, seeds from 0")
    out = Path(out)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    about = {"phantom": asdict(settings), "phantom_version": PHANTOM_VERSION}
    there = open_store(out) if (out / MANIFEST).is_file() else None
    held = {r.id for r in there.records} if there else set()
    if there is None or not held:
        write_settings(out, about)
    elif {key: there.settings.get(key) for key in about} != json.loads(json.dumps(about)):
        raise UserError(f"{out}: holds phantoms of other settings or another version; choose another folder")
    missing = [s for s in range(seed, seed + count) if _name(s) not in held]
    write_each(partial(_store_one, out, settings, fractions), missing, workers, count)
    if missing:
        made = open_store(out)
        move_patients(made, fill_splits(made, fractions, 0))
    return open_store(out)


def _name(seed: int) -> str:
    return f"phantom-{seed:08d}"


def _store_one(out: Path, settings: PhantomSettings, fractions: tuple[float, float, float], seed: int) -> None:
    name = _name(seed)
    volume, split = make_phantom(seed, settings).volume, assign_split(name, fractions)
    put_volume(out, volume, id=name, patient=name, split=split, source=f"phantom seed {seed}", synthetic=True)
