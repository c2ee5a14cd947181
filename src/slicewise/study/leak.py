"""Can a program tell a study's real cases from its synthetic ones by what is no anatomy? What tells them apart at a
glance at numbers (file, codes, air, extremes, how well it packs) would unblind a reader who looks there."""

import zlib
from dataclasses import dataclass

import numpy as np
from scipy import optimize
from scipy.special import expit

from slicewise.study.statistics import Interval, auc, auc_interval

# Above this the cases can be told apart: an area of 0.5 is chance.
MOST_AUC = 0.65
_FOLDS, _REPEATS = 5, 20
_CODES = (-100, 200)  # HU that every head fills
# What `slicewise.study.cases` makes alike; the other features are the picture in numbers: tissue, noise.
FORM = (
    "file size", "header", "slices", "least HU", "largest HU", "voxels of the largest HU", "empty codes", "even codes",
    "mean of air", "noise in air",
)  # fmt: skip
_SHARES = (-1000, -900, -600, -300, -100, -20, 0, 20, 40, 60, 80, 150, 300, 700, 1200)


@dataclass(frozen=True)
class Leak:
    """How well cases are told apart without looking: area under the ROC of a logistic regression on all features, and
    on those of `FORM` alone, with intervals, and the feature that does best alone, with its area (the larger of it and
    its complement)."""

    auc: Interval
    form: Interval
    feature: str
    feature_auc: float

    @property
    def tells(self) -> bool:
        """Whether the area is above `MOST_AUC`, and above chance by more than chance."""
        return self.auc.value > MOST_AUC and self.auc.lower > 0.5


def features(file: bytes, hu: np.ndarray) -> dict[str, float]:
    """What of a case file is no anatomy, or only the bulk of it: size and header as numbers, extremes and how often
    they occur, codes that no voxel has, noise in air, shares of the HU histogram, size once compressed."""
    codes = np.bincount(np.clip(hu, *_CODES).ravel() - _CODES[0], minlength=_CODES[1] - _CODES[0] + 1)[1:-1]
    low, high = int(hu.min()), int(hu.max())
    air = hu[hu < -800].astype(np.float64)
    found = {
        "file size": len(file),
        "header": float(zlib.crc32(file[:352])),
        "slices": len(hu),
        "least HU": low,
        "largest HU": high,
        "voxels of the least HU": float((hu == low).mean()),
        "voxels of the largest HU": float((hu == high).mean()),
        "empty codes": int((codes == 0).sum()),
        "even codes": float(codes[::2].sum() / max(codes.sum(), 1)),
        "mean of air": float(air.mean()) if len(air) else 0.0,
        "noise in air": float(air.std()) if len(air) else 0.0,
        "compressed size": len(zlib.compress(np.ascontiguousarray(hu).tobytes(), 6)),
    }
    shares = np.histogram(hu, [-np.inf, *_SHARES, np.inf])[0] / hu.size
    return found | {f"share of {lo} to {hi} HU": float(s) for lo, hi, s in zip(_SHARES, _SHARES[1:], shares[1:-1])}


def leak_test(real: list[dict[str, float]], synthetic: list[dict[str, float]], seed: int = 0) -> Leak:
    """Cross-validated, by stratified folds, many times over; an area needs two cases of a kind."""
    names = list(real[0])
    x = np.array([[case[name] for name in names] for case in (*real, *synthetic)], np.float64)
    y = np.r_[np.zeros(len(real)), np.ones(len(synthetic))]
    form = [i for i, name in enumerate(names) if name in FORM]
    single, _ = auc(*(x[y == kind].T for kind in (0, 1)))
    single = np.maximum(single, 1 - single)
    best = int(np.argmax(single))
    return Leak(_area(x, y, seed), _area(x[:, form], y, seed), names[best], float(single[best]))


def _area(x: np.ndarray, y: np.ndarray, seed: int) -> Interval:
    """Area under the ROC of scores of cases that the model has not seen."""
    scores = _scores(x, y, np.random.default_rng(seed))
    area, variance = auc(*(scores[None, y == kind] for kind in (0, 1)))
    return auc_interval(float(area[0]), float(variance[0, 0]), *(int((y == kind).sum()) for kind in (0, 1)))


def _scores(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every case's score by models that have not seen it, mean over repetitions, float (N,)."""
    total = np.zeros(len(y))
    folds = max(min(_FOLDS, int(min((y == 0).sum(), (y == 1).sum()))), 2)
    for _ in range(_REPEATS):
        fold = np.empty(len(y), int)
        for kind in (0, 1):  # every fold has its share of both
            fold[y == kind] = rng.permutation(np.arange((y == kind).sum()) % folds)
        for k in range(folds):
            train = fold != k
            mean, spread = x[train].mean(axis=0), x[train].std(axis=0)
            z = np.where(spread > 0, (x - mean) / np.where(spread > 0, spread, 1), np.sign(x - mean))
            weights = logistic(z[train], y[train])
            total[~train] += z[~train] @ weights[1:] + weights[0]
    return total / _REPEATS


def logistic(x: np.ndarray, y: np.ndarray, penalty: float = 1.0) -> np.ndarray:
    """Weights of a logistic regression, float (1 + features,), the first of them the offset: the least of the log loss
    summed over cases plus penalty/2 times the squared weights (ridge), the offset free."""

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        score = x @ w[1:] + w[0]
        rest = expit(score) - y
        value = np.logaddexp(0, score).sum() - y @ score + penalty / 2 * w[1:] @ w[1:]
        return float(value), np.r_[rest.sum(), x.T @ rest + penalty * w[1:]]

    return np.asarray(optimize.minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x)
