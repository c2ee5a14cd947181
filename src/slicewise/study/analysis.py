"""From answers and key to the figures of the report: plain values that JSON holds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from slicewise.study.design import CONFIDENCE, KINDS, NOT_JUDGED, SCALE
from slicewise.study.statistics import (
    Interval,
    agreement_share,
    auc,
    auc_interval,
    case_interval,
    difference,
    holm,
    readers_at_large,
    roc,
    student_interval,
    weighted_kappa,
    wilson,
)
from slicewise.study.store import Answers

LEVEL = 0.95


@dataclass(frozen=True)
class Reading:
    """One finished case of one reader; practice is left out.

    `ratings` has one entry a structure, NaN where it could not be judged; `again` marks the second reading of a case.
    """

    reader: str
    place: int
    case: str
    kind: str
    again: bool
    ratings: tuple[float, ...]
    guess: str
    confidence: int
    seconds: float
    comment: str

    @property
    def score(self) -> int:
        """From -3 (certainly real) to 3 (certainly synthetic)."""
        return self.confidence if self.guess == "synthetic" else -self.confidence


def readings(about: dict[str, Any], key: dict[str, dict[str, Any]], answers: Answers) -> list[Reading]:
    """Every finished case of every reader, in the order of reading."""
    count = len(about["settings"]["structures"])
    found = []
    for reader, plan in about["readers"].items():
        seconds, done, seen = answers.seconds(reader), answers.finished(reader), set()
        for place, shown in enumerate(plan["cases"], start=len(plan["practice"])):
            case = key[shown].get("again", shown)  # a second showing is a file of its own
            again = case in seen
            seen.add(case)
            if place not in done:
                continue
            given = answers.latest(reader, place)
            values = [int(given[f"s{i}"]) for i in range(count)]
            ratings = tuple(math.nan if v == NOT_JUDGED else float(v) for v in values)
            found.append(
                Reading(
                    reader,
                    place,
                    case,
                    key[case]["kind"],
                    again,
                    ratings,
                    given["guess"],
                    int(given["confidence"]),
                    round(seconds.get(place, 0.0), 1),
                    given.get("comment", ""),
                )
            )
    return found


def analyse(about: dict[str, Any], read: Sequence[Reading]) -> dict[str, Any]:
    """Everything that the report shows, as plain values (NaN is None)."""
    settings = about["settings"]
    structures, readers = settings["structures"], list(about["readers"])
    first = [r for r in read if not r.again]
    tables = {kind: _table([r for r in first if r.kind == kind], readers, len(structures)) for kind in KINDS}
    progress = [
        {"reader": name, "finished": sum(r.reader == name for r in read), "total": len(plan["cases"])}
        for name, plan in about["readers"].items()
    ]
    found: dict[str, Any] = _jsonable(
        {
            "title": settings["title"],
            "version": about["version"],
            "settings": settings,
            "grid": about["grid"],
            "readers": progress,
            "complete": all(p["finished"] == p["total"] for p in progress),
            "cases": {kind: len({r.case for r in first if r.kind == kind}) for kind in KINDS},
            "table2": _table2(structures, tables),
            "non_inferiority": _non_inferiority(structures, tables, settings["margin"]),
            "by_reader": _by_reader(structures, readers, tables),
            "agreement": {
                "weights": settings["kappa"],
                "between": _between(structures, np.concatenate([tables[k] for k in KINDS], axis=1), settings["kappa"]),
                "within": _within(structures, read, settings["kappa"]),
            },
            "guess": _guess(first, readers),
            "times": _times(first, readers),
            "comments": [asdict(r) for r in read if r.comment],
        }
    )
    return found


def _table(read: Sequence[Reading], readers: Sequence[str], structures: int) -> np.ndarray:
    """Ratings, float (readers, cases, structures), NaN where there is none."""
    cases = sorted({r.case for r in read})
    table = np.full((len(readers), len(cases), structures), math.nan)
    for r in read:
        table[readers.index(r.reader), cases.index(r.case)] = r.ratings
    return table


def _table2(structures: Sequence[str], tables: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Mean by structure and kind, with the interval over cases, and how often each score was given."""
    rows = []
    for i, name in enumerate(structures):
        row: dict[str, Any] = {"structure": name}
        for kind in KINDS:
            ratings = tables[kind][:, :, i]
            given = np.isfinite(ratings)
            counts = given.sum(axis=0)
            means = (np.nansum(ratings, axis=0) / np.maximum(counts, 1))[counts > 0]
            row[kind] = {
                "mean": student_interval(means, SCALE[0], SCALE[-1], LEVEL),
                "scores": {str(v): int((ratings == v).sum()) for v in SCALE},
                "ratings": int(given.sum()),
            }
        rows.append(row)
    return rows


def _non_inferiority(structures: Sequence[str], tables: dict[str, np.ndarray], margin: float) -> dict[str, Any]:
    compared = [
        difference(tables["real"][:, :, i], tables["synthetic"][:, :, i], margin, SCALE[0], SCALE[-1], LEVEL)
        for i in range(len(structures))
    ]
    alpha = (1 - LEVEL) / 2
    rows = [
        {
            "structure": name,
            "difference": c.fixed,
            "p": c.p,
            "p_holm": adjusted,
            "shown": adjusted < alpha,
            "at_large": c.at_large,
            "p_at_large": c.p_at_large,
        }
        for name, c, adjusted in zip(structures, compared, holm([c.p for c in compared]))
    ]
    return {"margin": margin, "alpha": alpha, "structures": rows, "all_shown": all(c.p < alpha for c in compared)}


def _by_reader(
    structures: Sequence[str], readers: Sequence[str], tables: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Mean rating by reader, structure and kind."""

    def mean(values: np.ndarray) -> float:
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else math.nan

    return [
        {"reader": r, "structure": s, **{kind: mean(tables[kind][a, :, i]) for kind in KINDS}}
        for a, r in enumerate(readers)
        for i, s in enumerate(structures)
    ]


def _counts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pairs of ratings (cases, structures) as counts, int (cases, structures, k, k)."""
    a = np.stack([first == v for v in SCALE], axis=-1)
    b = np.stack([second == v for v in SCALE], axis=-1)
    found: np.ndarray = (a[..., :, None] & b[..., None, :]).astype(int)
    return found


def _between(structures: Sequence[str], table: np.ndarray, weights: Any) -> list[dict[str, Any]]:
    """Mean kappa over all pairs of readers (Light 1971), with the interval over cases."""
    pairs = list(combinations(range(len(table)), 2))
    if not pairs:
        return []
    counts = np.stack([_counts(table[a], table[b]) for a, b in pairs])
    return [_kappa_row(name, part, weights) for name, part in _by_structure(structures, counts)]


def _within(structures: Sequence[str], read: Sequence[Reading], weights: Any) -> list[dict[str, Any]]:
    """Kappa of first against second readings, pooled over readers, with the interval over the cases read twice."""
    before = {(r.reader, r.case): r for r in read if not r.again}
    pairs = [(before[r.reader, r.case], r) for r in read if r.again and (r.reader, r.case) in before]
    if not pairs:
        return []
    first, second = (np.array([p[i].ratings for p in pairs]) for i in (0, 1))
    counts = _counts(first, second)
    # One case is one unit, whoever has read it.
    cases = sorted({r.case for _, r in pairs})
    counts = np.stack([counts[[r.case == case for _, r in pairs]].sum(axis=0) for case in cases])[None]
    return [_kappa_row(name, part, weights) for name, part in _by_structure(structures, counts)]


def _by_structure(structures: Sequence[str], counts: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
    """All structures together, then one by one: (name, counts (pairs, cases, k, k))."""
    yield "All structures", counts.sum(axis=2)
    for i, name in enumerate(structures):
        yield name, counts[:, :, i]


def _kappa_row(name: str, counts: np.ndarray, weights: Any) -> dict[str, Any]:
    def mean_kappa(cases: np.ndarray) -> float:
        kappas = weighted_kappa(counts[:, cases].sum(axis=1), weights)
        kappas = kappas[np.isfinite(kappas)]
        return float(kappas.mean()) if len(kappas) else math.nan

    return {
        "structure": name,
        "kappa": case_interval(mean_kappa, counts.shape[1], LEVEL),
        "same": agreement_share(counts.sum(axis=(0, 1))),
        "pairs": int(counts.sum()),
    }


def _guess(first: Sequence[Reading], readers: Sequence[str]) -> dict[str, Any]:
    """How well readers tell synthetic from real: accuracy, ROC of guess and confidence, and the mean over readers."""
    levels = [*range(-len(CONFIDENCE), 0), *range(1, len(CONFIDENCE) + 1)]
    rows = []
    for name in readers:
        mine = [r for r in first if r.reader == name]
        real, synthetic = ([r.score for r in mine if r.kind == kind] for kind in KINDS)
        right = sum(r.guess == r.kind for r in mine)
        areas, covariance = auc(np.array([real], float), np.array([synthetic], float))
        row = {
            "reader": name,
            "cases": len(mine),
            "accuracy": wilson(right, len(mine), LEVEL),
            "p_chance": float(stats.binomtest(right, len(mine)).pvalue) if mine else math.nan,
            "called_synthetic": {
                kind: wilson(sum(v > 0 for v in values), len(values), LEVEL)
                for kind, values in zip(KINDS, (real, synthetic))
            },
            "auc": auc_interval(float(areas[0]), float(covariance[0, 0]), len(real), len(synthetic), LEVEL),
            "roc": roc(np.array(real), np.array(synthetic), levels) if real and synthetic else [],
        }
        rows.append(row)
    return {"readers": rows, **_mean_auc(first, readers)}


def _mean_auc(first: Sequence[Reading], readers: Sequence[str]) -> dict[str, Any]:
    """Mean area over readers on the cases that all of them have read."""
    scores = {(r.reader, r.case): float(r.score) for r in first}
    kinds = {r.case: r.kind for r in first}
    shared = sorted(case for case in kinds if all((name, case) in scores for name in readers))
    real, synthetic = (
        np.array([[scores[name, case] for case in shared if kinds[case] == kind] for name in readers]) for kind in KINDS
    )
    areas, covariance = auc(real, synthetic)
    fixed = auc_interval(float(areas.mean()), float(covariance.mean()), real.shape[1], synthetic.shape[1], LEVEL)
    at_large = Interval(fixed.value, math.nan, math.nan)
    if len(readers) > 1 and math.isfinite(fixed.value):
        wide, _ = readers_at_large(areas, covariance, LEVEL)
        at_large = Interval(wide.value, max(0.0, wide.lower), min(1.0, wide.upper))
    return {"auc": fixed, "auc_at_large": at_large, "shared_cases": len(shared)}


def _times(first: Sequence[Reading], readers: Sequence[str]) -> list[dict[str, Any]]:
    """Median and quartiles of active reading time, seconds, by reader and kind."""
    rows = []
    for name in [*readers, "All readers"]:
        row: dict[str, Any] = {"reader": name}
        for kind in KINDS:
            mine = [r.seconds for r in first if r.kind == kind and name in (r.reader, "All readers")]
            q1, median, q3 = np.quantile(mine, [0.25, 0.5, 0.75]) if mine else (math.nan,) * 3
            row[kind] = {"median": float(median), "q1": float(q1), "q3": float(q3), "cases": len(mine)}
        rows.append(row)
    return rows


def _jsonable(value: Any) -> Any:
    """For JSON: intervals as mappings, NaN as None, NumPy numbers as Python's."""
    if isinstance(value, Interval):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (float, np.floating)):
        return None if math.isnan(value) else float(value)
    return value
