"""Make a reading study: draw the cases, make them alike, hide which is which, order them for every reader.

<study>/study.json    what is asked, and every reader's order; nothing about which case is real
<study>/cases/ID.nii  one file a case and one a second showing, all of one size and date, named at random
<study>/key.json      which case is real, where it came from, and what the leak test found; the server never opens it
<study>/readers.csv   the readers' personal tokens
<study>/answers.sqlite  appears when the study is served
"""

import csv
import hashlib
import io
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import slicewise
from slicewise.data.resample import Grid
from slicewise.errors import UserError, output_errors
from slicewise.io.atomic import atomic_path, write_whole
from slicewise.io.files import Skipped
from slicewise.study.cases import MIN_SLICES, alike, case_file, common_grid, on_grid
from slicewise.study.design import KINDS, StudySettings, order, pair
from slicewise.study.leak import MOST_AUC, Leak, features, leak_test
from slicewise.viewer.shelf import Entry, entries
from slicewise.volume import without_real_slices

STUDY, CASES, KEY, READERS, ANSWERS = "study.json", "cases", "key.json", "readers.csv", "answers.sqlite"
# One date for every case file.
_DATE = 946684800
CONSENT = (
    "You will look at head CT volumes, some from patients and some made by a computer, and rate how "
    "well structures hold together from slice to slice.",
    "Your ratings, your guesses and the time you take are stored under a reader number, not under your name. You may "
    "stop at any time and continue later, on any computer, with your personal link. Keep the link to yourself.",
    "The volumes are for this study only. Do not copy them, do not try to find out whom they show, and do not discuss "
    "individual cases with other readers until all have finished.",
)


def create(
    out: Path,
    real: Path,
    synthetic: Path,
    settings: StudySettings,
    consent: Path | None = None,
    *,
    allow_leak: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Any], list[Skipped], Leak]:
    """Write a study into the new folder `out`; returns what study.json says, what was left out and why, and how well a
    program tells its cases apart (see `slicewise.study.leak`).

    `real` and `synthetic` are folders of DICOM or NIfTI, stores, or runs of slicewise generate. `consent` is a text
    file to show on the first page, a paragraph a line, in place of `CONSENT`.

    Raises `UserError` where a folder holds too few usable volumes, both are one, `out` is there or cannot be written,
    and where the cases can be told apart, unless `allow_leak`. The folder appears whole or not at all.
    """
    if out.exists():
        raise UserError(f"{out}: already exists; choose another folder, so that no study is overwritten")
    if real.resolve() == synthetic.resolve():
        raise UserError(f"real and synthetic are both {real}; give two folders")
    seed = settings.seed if settings.seed >= 0 else secrets.randbits(63)
    rng = np.random.default_rng(seed)
    skipped: list[Skipped] = []
    wanted = np.add(pair("StudySettings.cases", settings.cases), pair("StudySettings.practice", settings.practice))
    with output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    drawn = [_draw(path, kind, int(n), rng, skipped) for kind, path, n in zip(KINDS, (real, synthetic), wanted)]
    spacings = [spacing for kind in drawn for _, spacing in kind]
    grid = common_grid(spacings, settings.pixel_mm, settings.slice_mm, settings.fov_mm, settings.remove_table)
    with output_errors(out), atomic_path(out) as building:
        building.mkdir(mode=0o700)
        study, leak = _build(building, drawn, grid, settings, seed, rng, _consent(consent), progress)
        if leak.tells and not allow_leak:
            raise UserError(
                f"the cases can be told apart without looking at them: {leak_text(leak)}, above the limit of "
                f"{MOST_AUC}; put both sets through the same steps (real=STORE, the prepared one), or "
                "add allow_leak=True and say so in the paper"
            )
    return study, skipped, leak


def leak_text(leak: Leak) -> str:
    """One phrase on what the leak test found."""
    areas = [f"{area.value:.2f} ({area.lower:.2f} to {area.upper:.2f})" for area in (leak.auc, leak.form)]
    return (
        f"leak test AUC {areas[0]}, by file, codes, extremes and air alone {areas[1]}; best alone: {leak.feature}, "
        f"{leak.feature_auc:.2f}"
    )


def _draw(
    path: Path, kind: str, count: int, rng: np.random.Generator, skipped: list[Skipped]
) -> list[tuple[Entry, tuple[float, float, float]]]:
    """`count` volumes at the path, at random, with their spacings (z, y, x)."""
    found, others = entries([path])
    skipped += others
    usable = [entry for entry in found if entry.finished]
    drawn: list[tuple[Entry, tuple[float, float, float]]] = []
    for index in rng.permutation(len(usable)):
        if len(drawn) == count:
            break
        try:
            volume = without_real_slices(usable[index].read())
            if len(volume.hu) < MIN_SLICES:
                raise UserError(f"{len(volume.hu)} slices where {MIN_SLICES} or more are needed")
            drawn.append((usable[index], volume.spacing))
        except UserError as error:
            skipped.append(Skipped(usable[index].title, str(error)))
    if len(drawn) < count:
        raise UserError(
            f"{kind}={path}: {len(drawn)} usable volumes, {count} needed for StudySettings.cases and "
            "StudySettings.practice; "
            "add more or ask for fewer"
        )
    return drawn


def _build(
    folder: Path,
    drawn: list[list[tuple[Entry, tuple[float, float, float]]]],
    grid: Grid,
    settings: StudySettings,
    seed: int,
    rng: np.random.Generator,
    consent: list[str],
    progress: Callable[[str], None],
) -> tuple[dict[str, Any], Leak]:
    """Everything in the study's folder, and how well its cases are told apart."""
    names = _names(sum(map(len, drawn)), rng)
    by_kind = [names[: len(drawn[0])], names[len(drawn[0]) :]]
    key: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        shapes = []
        for kind, ids, members in zip(KINDS, by_kind, drawn):
            for case, (entry, _) in zip(ids, members):
                progress(f"{len(key) + 1} of {len(names)}")
                hu = on_grid(without_real_slices(entry.read()), grid)
                np.save(Path(scratch) / f"{case}.npy", hu, allow_pickle=False)
                shapes.append(len(hu))
                key[case] = {"kind": kind, "source": entry.title, "slices": len(hu)}
        slices = settings.slices or min(shapes)
        least = max(slices, MIN_SLICES)
        short = [f"{about['source']} ({about['slices']})" for about in key.values() if about["slices"] < least]
        if short:
            raise UserError(
                f"fewer than {least} slices on the study's grid: {', '.join(short[:5])}; leave them out"
                + (" or lower StudySettings.slices" if settings.slices > MIN_SLICES else "")
            )
        practised = pair("StudySettings.practice", settings.practice)
        practice = [case for ids, n in zip(by_kind, practised) for case in ids[:n]]
        readers = {f"Reader {i + 1}": secrets.token_urlsafe(24) for i in range(settings.readers)}
        orders = {
            name: order(
                by_kind[0][practised[0] :],
                by_kind[1][practised[1] :],
                pair("StudySettings.repeats", settings.repeats),
                rng,
            )
            for name in readers
        }
        twice = sorted({case for plan in orders.values() for case in plan if plan.count(case) == 2})
        second = dict(zip(twice, _names(len(twice), rng, taken=names)))
        ceiling = min(int(_load(scratch, case)[:slices].max()) for case in names)
        (folder / CASES).mkdir()
        told: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for case, shown in sorted([*((n, n) for n in names), *second.items()], key=lambda pair: pair[1]):
            hu = alike(_load(scratch, case)[:slices], ceiling, rng)
            file, data = folder / CASES / f"{shown}.nii", case_file(hu, grid)
            write_whole(file, data)
            os.utime(file, (_DATE, _DATE))
            if shown == case and case not in practice:
                told[key[case]["kind"]].append(features(data, hu))
    leak = leak_test(told[KINDS[0]], told[KINDS[1]])
    key |= {shown: {**key[case], "again": case} for case, shown in second.items()}
    study = {
        "version": slicewise.__version__,
        "settings": {k: v for k, v in asdict(settings).items() if k != "seed"},
        "consent": consent,
        "grid": {"pixel_mm": grid.fov_mm / grid.size, "slice_mm": grid.slice_mm, "size": grid.size, "slices": slices},
        "feedback": {case: key[case]["kind"] for case in sorted(practice)},
        "readers": {
            name: {
                "token_sha256": hashlib.sha256(token.encode()).hexdigest(),
                "practice": [str(case) for case in rng.permutation(practice)],
                "cases": [
                    second[case] if case in orders[name][:place] else case for place, case in enumerate(orders[name])
                ],
            }
            for name, token in readers.items()
        },
    }
    table = io.StringIO()
    csv.writer(table).writerows([("reader", "token"), *readers.items()])
    write_whole(folder / STUDY, _json(study))
    write_whole(folder / READERS, table.getvalue().encode())
    found = {
        "auc": asdict(leak.auc),
        "form": asdict(leak.form),
        "feature": leak.feature,
        "feature_auc": leak.feature_auc,
    }
    write_whole(folder / KEY, _json({"seed": seed, "leak": found, "cases": {case: key[case] for case in sorted(key)}}))
    os.chmod(folder, 0o700)
    return study, leak


def _load(scratch: str, case: str) -> np.ndarray:
    found: np.ndarray = np.load(Path(scratch) / f"{case}.npy", allow_pickle=False)
    return found


def _names(count: int, rng: np.random.Generator, taken: Iterable[str] = ()) -> list[str]:
    """Random names, none twice and none that is taken."""
    names = dict.fromkeys(taken)
    before = len(names)
    while len(names) < before + count:
        names[rng.bytes(6).hex()] = None
    return list(names)[before:]


def _consent(path: Path | None) -> list[str]:
    if path is None:
        return list(CONSENT)
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"consent={path}: cannot be read ({error}); give a text file") from None
    if not lines:
        raise UserError(f"consent={path}: is empty; write the text that readers agree to")
    return lines


def read_study(folder: Path) -> dict[str, Any]:
    """What study.json says. Raises `UserError` where the folder holds no study."""
    found: dict[str, Any] = _read(folder / STUDY, "no study; make one with slicewise study create")
    return found


def read_key(folder: Path) -> dict[str, dict[str, Any]]:
    """Case to kind and source. Raises `UserError` where the key is not there."""
    found: dict[str, dict[str, Any]] = _read(folder / KEY, "the key is missing; restore it before asking for a report")[
        "cases"
    ]
    return found


def read_links(folder: Path) -> Iterable[tuple[str, str]]:
    """(reader, token); empty where the file was taken away."""
    try:
        with (folder / READERS).open(newline="") as file:
            return [(row["reader"], row["token"]) for row in csv.DictReader(file)]
    except (OSError, KeyError):
        return []


def _read(file: Path, missing: str) -> Any:
    try:
        return json.loads(file.read_text())
    except OSError:
        raise UserError(f"{file}: {missing}") from None
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}); restore it from a copy") from None


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
