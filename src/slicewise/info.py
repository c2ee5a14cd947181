"""What a checkpoint, store, run folder, DICOM folder or NIfTI file holds, in plain values or a few lines of text."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from slicewise.data.store import SPLITS, open_store
from slicewise.errors import UserError
from slicewise.io.archive import read_volumes
from slicewise.io.dicom import Reading
from slicewise.io.files import Skipped
from slicewise.io.folders import RECORD, generated_series, is_store, is_training


def facts(path: Path) -> dict[str, Any]:
    """What `path` holds, in JSON's types; `kind` is "store", "checkpoint", "run" or "volumes".

    Raises `UserError` where the path is none of these.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if is_store(path):
        return _store(path)
    if path.suffix == ".safetensors" or is_training(path):
        return _checkpoint(path)
    if generated_series(path):
        return {"kind": "run", "about": json.loads((path / RECORD).read_text())}
    skipped: list[Skipped] = []
    volumes = [_volume(reading) for reading in read_volumes(path, skipped.append)]
    if not volumes and not skipped:
        raise UserError(f"{path}: holds no DICOM, NIfTI, store or checkpoint")
    return {"kind": "volumes", "volumes": volumes, "skipped": [asdict(one) for one in skipped]}


def describe(found: Mapping[str, Any]) -> str:
    """What `facts` found, in a few lines."""
    if found["kind"] == "store":
        lines = [f"prepared store of {len(found['volumes'])} volumes, fingerprint {found['fingerprint'][:16]}"]
        lines += [
            f"{name:6} {held['volumes']} volumes of {held['patients']} patients, "
            f"{min(held['slices'])} to {max(held['slices'])} slices"
            for name, held in found["splits"].items()
        ]
        lines += [
            f"  {v['id']}  {v['split']:5}  {_by(v['shape'])} voxels, {_by(v['spacing_mm'])} mm"
            for v in found["volumes"]
        ]
        return "\n".join(lines)
    if found["kind"] == "checkpoint":
        parameters = f"{found['parameters'] / 1e6:.2f} M parameters"
        return f"{found['about']['kind']} with {parameters}\n{_lines(found['about'])}"
    if found["kind"] == "run":
        return _lines(found["about"])
    lines = [_about(volume) for volume in found["volumes"]]
    lines += [f"left out: {one['source']}: {one['reason']}" for one in found["skipped"]]
    return "\n".join(lines)


def _store(path: Path) -> dict[str, Any]:
    store = open_store(path)
    splits = {}
    for name in SPLITS:
        if held := store.select(name):
            slices = [r.shape[0] for r in held]
            span = [min(slices), max(slices)]
            splits[name] = {"volumes": len(held), "patients": len({r.patient for r in held}), "slices": span}
    volumes = [
        {"id": r.id, "split": r.split, "shape": list(r.shape), "spacing_mm": list(r.spacing_mm)} for r in store.records
    ]
    return {"kind": "store", "fingerprint": store.fingerprint, "splits": splits, "volumes": volumes}


def _checkpoint(path: Path) -> dict[str, Any]:
    from slicewise.baselines.sampling import KINDS, build_baseline
    from slicewise.checkpoint import kind_of, load_model
    from slicewise.pyramid import KIND, load_pyramid

    if kind_of(path) == KIND:
        pyramid = load_pyramid(path)
        networks, meta = [level.network for level in pyramid.levels], pyramid.meta
    else:
        network, meta = load_model(path, KINDS, build_baseline) if kind_of(path) in KINDS else load_model(path)
        networks = [network]
    return {"kind": "checkpoint", "parameters": sum(p.numel() for n in networks for p in n.parameters()), "about": meta}


def _volume(reading: Reading) -> dict[str, Any]:
    volume, a = reading.volume, reading.volume.acquisition
    steps = volume.slice_steps
    return {
        "source": a.source,
        "shape": list(volume.hu.shape),
        "spacing_mm": [float(v) for v in volume.spacing],
        "slice_steps_mm": [float(steps.min()), float(steps.max())] if len(steps) else [],
        "even": bool(volume.is_even),
        "gantry_tilt_deg": a.gantry_tilt_deg,
        "hu": [int(volume.hu.min()), int(volume.hu.max())],
        "mean_hu": float(volume.hu.mean()),
        "synthetic": a.synthetic,
        "real_slices": list(a.real_slices),
        "notes": [*reading.notes, *([f"values do not look like HU: {reading.doubt}"] if reading.doubt else [])],
    }


def _about(volume: Mapping[str, Any]) -> str:
    v = volume
    tilt = f", gantry tilt {v['gantry_tilt_deg']:g} deg" if v["gantry_tilt_deg"] else ""
    even = "" if v["even"] else ", uneven ({:.2f} to {:.2f} mm)".format(*v["slice_steps_mm"])
    kind = ", synthetic" if v["synthetic"] else ""
    if v["real_slices"]:
        kind += f" but for slice {', '.join(map(str, v['real_slices']))} (of a real scan)"
    line = (
        f"{v['source']}: {_by(v['shape'])} voxels (z, y, x), {_by(v['spacing_mm'])} mm{even}{tilt}, "
        f"{v['hu'][0]} to {v['hu'][1]} HU, mean {v['mean_hu']:.1f} HU{kind}"
    )
    return "\n".join([line, *(f"  {note}" for note in v["notes"])])


def _lines(values: Mapping[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", _lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):  # the levels of a pyramid
            for number, one in enumerate(value, 1):
                lines += [f"{indent}{key} {number}:", _lines(one, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return "\n".join(lines)


def _by(values: list[float]) -> str:
    return " x ".join(f"{v:g}" for v in np.round(values, 3))
