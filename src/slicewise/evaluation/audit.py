"""The memorisation audit of an evaluation: training volumes stream by, and every synthetic and held-out one looks for
itself among them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from slicewise.errors import UserError
from slicewise.evaluation.collect import Side, Work, read_again, read_member
from slicewise.metrics.memorisation import MEASURES, Nearest, Verdict, judge, slice_pictures, volume_picture
from slicewise.metrics.survey import digest
from slicewise.volume import Volume

# Closest pairs that are pictured.
PAIRS_SHOWN = 4


@dataclass(frozen=True)
class ClosePair:
    """A synthetic slice and the training slice nearest to it.

    Attributes
    ----------
    synth, synth_slice, train, train_slice : which; slices count from 0, the most superior.
    ratio : of the nearest to the second-nearest training distance.
    correlation : of the two pictures.
    pictures : their HU, int16 (rows, columns).
    """

    synth: str
    synth_slice: int
    train: str
    train_slice: int
    ratio: float
    correlation: float
    pictures: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Audit:
    """What the audit found.

    Attributes
    ----------
    volumes : training volumes looked through.
    exact : synthetic volumes that are training volumes, voxel for voxel.
    verdicts : one a measure.
    pairs : the synthetic slices with the lowest ratio, at most one a volume.
    """

    volumes: int
    exact: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    pairs: tuple[ClosePair, ...]

    @property
    def passed(self) -> bool:
        return not self.exact and all(v.passed for v in self.verdicts)


def audit(real: Side, synth: Side, train: Side, work: Work, bar: Any) -> Audit:
    """Look for copies of the training set `train` in `synth`, judged by the held-out set `real`.

    Raises `UserError` where a held-out volume is a training volume: it could judge nothing.
    """
    sides = (synth, real)
    of = {
        name: [np.repeat(np.arange(len(s.names)), [len(q) for q in s.queries[name]]) for s in sides]
        for name in MEASURES
    }
    found = {name: [Nearest(np.concatenate(s.queries[name])) for s in sides] for name in MEASURES}
    task = bar.add_task("TRAIN ", total=len(train.source.members))
    patients: dict[str, int] = {}
    for place, member in enumerate(train.source.members):
        volume = read_member(train, member, work.settings, work.frame)
        bar.advance(task)
        if volume is None:
            continue
        number = len(train.names)
        train.names.append(member.name)
        train.members.append(place)
        train.digests.append(digest(volume))
        patient = patients.setdefault(member.patient or member.name, len(patients))
        for name, rows in _rows(volume, work).items():
            for nearest in found[name]:
                nearest.add(rows, number, patient)
    if len(patients) < 2:
        raise UserError(f"{train.source.path}: {len(patients)} training patient(s); the audit needs two or more")
    leaked = set(real.digests) & set(train.digests)
    if leaked:
        name = real.names[real.digests.index(next(iter(leaked)))]
        raise UserError(
            f"{real.source.path}: {len(leaked)} of its volumes ({name}, …) are in the training set "
            f"{train.source.path}; REAL must be held out for the audit, or omit the training data"
        )
    verdicts = [judge(name, found[name][0], of[name][0], found[name][1], of[name][1]) for name in MEASURES]
    exact = [n for n, d in zip(synth.names, synth.digests) if d in set(train.digests)]
    nearest, owners = found["slices, correlation"][0], of["slices, correlation"][0]
    pairs = _closest(nearest, owners, synth, train, work)
    return Audit(len(train.names), tuple(exact), tuple(verdicts), tuple(pairs))


def _rows(volume: Volume, work: Work) -> dict[str, np.ndarray]:
    """What a training volume is known by, for each measure (n, d)."""
    window = work.settings.windows[1]
    axial = work.features(volume, ("axial",), [window])[1]["axial", window]
    return {
        "slices, features": axial.rows,
        "volumes, features": axial.rows.mean(axis=0, keepdims=True),
        "slices, correlation": slice_pictures(volume.hu),
        "volumes, correlation": volume_picture(volume.hu),
    }


def _closest(found: Nearest, of: np.ndarray, synth: Side, train: Side, work: Work) -> list[ClosePair]:
    """The pairs of the lowest ratios, read again for their pictures."""
    assert work.frame is not None
    slices = np.concatenate([np.array(p) for p in synth.places])
    pairs: list[ClosePair] = []
    seen: set[int] = set()
    for query in np.argsort(found.ratio, kind="stable"):
        volume = int(of[query])
        if volume in seen:
            continue
        seen.add(volume)
        nearest, row = int(found.volume[query]), int(found.row[query])
        one = read_again(synth, volume, work.settings, work.frame).hu[slices[query]]
        other = read_again(train, nearest, work.settings, work.frame).hu[row]
        pairs.append(
            ClosePair(
                synth.names[volume],
                int(slices[query]),
                train.names[nearest],
                row,
                float(found.ratio[query]),
                float(1 - found.first[query] ** 2 / 2),
                (one, other),
            )
        )
        if len(pairs) == PAIRS_SHOWN:
            break
    return pairs


def sentence(found: Audit) -> str:
    """The verdict in one sentence."""
    if found.exact:
        return f"FAILED: {len(found.exact)} synthetic volumes are training volumes, voxel for voxel"
    failed = [v for v in found.verdicts if not v.passed]
    if not failed:
        searched = f"{found.volumes} training volumes searched"
        return f"passed: no synthetic volume singles out one training volume more than held-out ones do ({searched})"
    worst = min(failed, key=lambda v: (-len(v.copies), v.p))
    below = f"{worst.below} of {len(worst.synth)} below every held-out one (p = {worst.p:.2g})"
    return f"FAILED: by {worst.name}, " + (f"{len(worst.copies)} copies" if worst.copies else below)
