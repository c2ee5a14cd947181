"""What normal heads leave: the mean and spread of their residuals, and the scores that they reach themselves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slicewise.anomaly.score import DEPTHS, TISSUES, bins, slice_scores, volume_score
from slicewise.anomaly.settings import AnomalySettings
from slicewise.errors import UserError
from slicewise.io.atomic import write_whole

KIND = "slicewise anomaly reference"
CELLS = len(TISSUES) * DEPTHS
# A cell of the table with fewer normal voxels than this takes the mean and spread of its tissue at all depths.
FEWEST = 2000
FEWEST_HEADS = 5


@dataclass(frozen=True)
class NormalReference:
    """Measures of held-out normal heads; a small JSON file.

    Attributes
    ----------
    checkpoint : SHA-256 of the checkpoint file that drew their pseudo-normal versions.
    settings : how these were drawn (`AnomalySettings.measured`).
    heads : how many.
    source : what they are, in words.
    mean, sd : of the studentised residuals, by tissue and depth (see `score.bins`).
    volumes : the score of every head, judged by the others alone.
    slices : the scores of their slices, likewise.
    """

    checkpoint: str
    settings: Mapping[str, Any]
    heads: int
    source: str
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    volumes: tuple[float, ...]
    slices: tuple[float, ...]

    def z(self, studentised: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """z-scores, float32 (Z, Y, X), of studentised residuals in the given `cells`; 0 where nothing is judged."""
        return _z(studentised, cells, np.array(self.mean), np.array(self.sd))

    def check(self, checkpoint: str, settings: AnomalySettings) -> None:
        """`UserError` where it was measured with another checkpoint or other settings."""
        if self.checkpoint != checkpoint:
            raise UserError(
                f"the normal reference was measured with another checkpoint (SHA-256 {self.checkpoint[:8]}…, not "
                f"{checkpoint[:8]}…); measure one with slicewise anomaly-reference"
            )
        for name, value in settings.measured.items():
            if self.settings.get(name) != value:
                raise UserError(
                    f"AnomalySettings.{name}={value}: the normal reference was measured with {self.settings.get(name)};"
                    " use that value, or measure another reference with slicewise anomaly-reference"
                )

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        text = json.dumps({"kind": KIND, **asdict(self)}, indent=1)
        write_whole(path, (text + "\n").encode())

    @staticmethod
    def load(path: Path) -> "NormalReference":
        """Read what `save` wrote. Raises `UserError` for a file that is none."""
        if not path.is_file():
            raise UserError(f"{path}: holds no normal reference; make one with slicewise anomaly-reference")
        try:
            held = json.loads(path.read_text())
            assert held.pop("kind") == KIND
            lists = {name: tuple(float(v) for v in held[name]) for name in ("mean", "sd", "volumes", "slices")}
            found = NormalReference(**{**held, **lists})
            assert len(found.mean) == len(found.sd) == CELLS
            return found
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
            raise UserError(
                f"{path}: not a normal reference, or one of another version; make one with slicewise anomaly-reference"
            ) from None


@dataclass(frozen=True)
class Judged:
    """A normal head, ready to be measured: its studentised residuals, their cells in the table, its tissues."""

    studentised: np.ndarray
    tissue: np.ndarray
    cells: np.ndarray
    spacing: tuple[float, float, float]

    @staticmethod
    def of(
        studentised: np.ndarray, tissue: np.ndarray, depth_mm: np.ndarray, spacing: tuple[float, float, float]
    ) -> "Judged":
        return Judged(studentised, tissue, bins(tissue, depth_mm), spacing)

    @property
    def sums(self) -> np.ndarray:
        """float64 (3, CELLS): number, sum and sum of squares of its residuals in every cell."""
        inside = self.cells >= 0
        at, values = self.cells[inside], self.studentised[inside].astype(np.float64)
        return np.stack([np.bincount(at, weights, CELLS) for weights in (np.ones_like(values), values, values**2)])


def measure_normal(heads: Sequence[Judged], checkpoint: str, settings: AnomalySettings, source: str) -> NormalReference:
    """The reference of normal heads. Every head's own scores come from the mean and spread of all others.

    Raises `UserError` for fewer than `FEWEST_HEADS`, of which no chance can be told.
    """
    if len(heads) < FEWEST_HEADS:
        raise UserError(f"{source}: {len(heads)} normal heads are too few; give {FEWEST_HEADS} or more")
    each = [head.sums for head in heads]
    total = np.sum(each, axis=0)
    scores = []
    for head, own in zip(heads, each):
        z = _z(head.studentised, head.cells, *_moments(total - own))
        scores.append(slice_scores(z, head.tissue, head.spacing))
    mean, sd = _moments(total)
    return NormalReference(
        checkpoint,
        settings.measured,
        len(heads),
        source,
        tuple(mean.tolist()),
        tuple(sd.tolist()),
        tuple(volume_score(one) for one in scores),
        tuple(float(s) for one in scores for s in one if np.isfinite(s)),
    )


def _moments(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every cell, of its whole tissue where the cell is thin (1 where that is, too)."""
    whole = sums.reshape(3, len(TISSUES), DEPTHS).sum(axis=2).repeat(DEPTHS, axis=1)
    count, first, second = np.where(sums[0] >= FEWEST, sums, whole)
    mean = first / np.maximum(count, 1)
    sd = np.sqrt(np.maximum(second / np.maximum(count, 1) - mean**2, 0))
    enough = count >= FEWEST
    return np.where(enough, mean, 0.0), np.where(enough & (sd > 0), sd, 1.0)


def _z(studentised: np.ndarray, cells: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    inside = cells >= 0
    z = np.zeros(studentised.shape, np.float32)
    z[inside] = (studentised[inside] - mean[cells[inside]]) / sd[cells[inside]]
    return z
