"""What a checkpoint, store, run folder, DICOM folder or NIfTI file holds, in a few lines of text."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from slicewise.data.store import MANIFEST, open_store
from slicewise.errors import UserError
from slicewise.io.archive import read_volumes
from slicewise.io.dicom import Reading
from slicewise.io.files import LeftOut


def describe(path: Path) -> str:
    """Raises `UserError` where the path is none of these."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if (path / MANIFEST).is_file():
        return _store(path)
    if path.suffix == ".safetensors" or (path / "weights.safetensors").is_file():
        return _checkpoint(path)
    if (path / "generate.json").is_file():
        return _lines(json.loads((path / "generate.json").read_text()))
    left_out: list[LeftOut] = []
    lines = [_volume(reading) for reading in read_volumes(path, left_out.append)]
    lines += [f"left out: {entry.source}: {entry.reason}" for entry in left_out]
    if not lines:
        raise UserError(f"{path}: holds no DICOM, NIfTI, store or checkpoint")
    return "\n".join(lines)


def _store(path: Path) -> str:
    store = open_store(path)
    lines = [f"prepared store of {len(store.records)} volumes, fingerprint {store.fingerprint[:16]}"]
    for split in ("train", "val", "test"):
        held = store.select(split)
        if held:
            slices = [r.shape[0] for r in held]
            patients = len({r.patient for r in held})
            lines.append(f"{split:6} {len(held)} volumes of {patients} patients, {min(slices)} to {max(slices)} slices")
    lines += [f"  {r.id}  {r.split:5}  {_mm(r.shape)} voxels, {_mm(r.spacing_mm)} mm" for r in store.records]
    return "\n".join(lines)


def _checkpoint(path: Path) -> str:
    from slicewise.baselines.sampling import KINDS, build_baseline
    from slicewise.checkpoint import kind_of, load_model

    network, meta = load_model(path, KINDS, build_baseline) if kind_of(path) in KINDS else load_model(path)
    parameters = sum(p.numel() for p in network.parameters())
    return f"{meta['kind']} with {parameters / 1e6:.2f} M parameters\n" + _lines(meta)


def _volume(reading: Reading) -> str:
    volume, a = reading.volume, reading.volume.acquisition
    tilt = "" if a.gantry_tilt_deg in (None, 0.0) else f", gantry tilt {a.gantry_tilt_deg:g} deg"
    even = "" if volume.is_even else f", uneven ({volume.slice_steps.min():.2f} to {volume.slice_steps.max():.2f} mm)"
    kind = ", synthetic" if a.synthetic else ""
    if a.real_slices:
        kind += f" but for slice {', '.join(map(str, a.real_slices))} (of a real scan)"
    lines = [
        f"{a.source}: {_mm(volume.hu.shape)} voxels (z, y, x), {_mm(volume.spacing)} mm{even}{tilt}, "
        f"{volume.hu.min()} to {volume.hu.max()} HU, mean {volume.hu.mean():.1f} HU{kind}"
    ]
    doubt = [f"values may be no HU: {reading.doubt}"] if reading.doubt else []
    return "\n".join([*lines, *(f"  {note}" for note in (*reading.notes, *doubt))])


def _lines(values: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", _lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return "\n".join(lines)


def _mm(values: tuple[float, ...]) -> str:
    return " x ".join(f"{v:g}" for v in np.round(values, 3))
