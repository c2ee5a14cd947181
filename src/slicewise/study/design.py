"""The design of a reading study: what is asked, of whom, in which order. No files, no truth about any case."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from slicewise.errors import UserError

# Table 2 of the paper.
STRUCTURES = (
    "Skull",
    "Skull base",
    "Facial bone",
    "Ventricles",
    "Sulci and fissures",
    "Basilar artery",
    "Venous sinuses",
    "Nerve tracts through the internal capsule",
)
ANCHORS = ("discontinuous", "strained", "well preserved")
SCALE = (1, 2, 3)
NOT_JUDGED = 0
CONFIDENCE = ("guessing", "fairly sure", "certain")
KINDS = ("real", "synthetic")


@dataclass(frozen=True)
class StudySettings:
    """A reading study."""

    title: str = "Reading study"
    """Title that readers see."""
    readers: int = 3
    """Number of readers; each gets a personal link and their own order."""
    cases: str = "50+50"
    """Real + synthetic volumes that every reader reads."""
    repeats: str = "5+5"
    """Real + synthetic volumes that every reader reads a second time, for intra-reader agreement."""
    practice: str = "1+1"
    """Real + synthetic practice volumes at the start, whose answers do not count."""
    structures: tuple[str, ...] = STRUCTURES
    """Structures to rate."""
    anchors: tuple[str, str, str] = ANCHORS
    """What 1, 2 and 3 on the scale mean."""
    margin: float = 0.25
    """Non-inferiority margin, points of the scale: synthetic may be rated lower by less than this."""
    kappa: Literal["linear", "quadratic"] = "linear"
    """Weights of kappa, by distance or by its square."""
    pixel_mm: float = 0.0
    """Pixel size of the grid that all cases are shown on, mm; 0 uses the largest of all cases, so that resolution
    gives nothing away."""
    slice_mm: float = 0.0
    """Distance between the slices of that grid, mm; 0 uses the largest of all cases."""
    fov_mm: float = 240.0
    """Side of the field of view, mm."""
    slices: int = 0
    """Slices of every case, from the vertex down; 0 means as many as the shortest case has."""
    remove_table: bool = True
    """Set table and head holder to air, in real and synthetic volumes alike."""
    seed: int = -1
    """Seed of the draw and the orders; -1 draws one from the operating system, so that nobody can work it out."""

    def __post_init__(self) -> None:
        cases, repeats = pair("StudySettings.cases", self.cases), pair("StudySettings.repeats", self.repeats)
        pair("StudySettings.practice", self.practice)
        if not 1 <= self.readers <= 200:
            raise UserError(f"StudySettings.readers={self.readers}: a study has 1 to 200 readers")
        if min(cases) < 2:
            raise UserError(
                f"StudySettings.cases={self.cases}: at least 2 of each kind are needed, or nothing can be compared"
            )
        most = sum(cases) - gap(sum(cases))
        if repeats[0] > cases[0] or repeats[1] > cases[1] or sum(repeats) > most:
            raise UserError(
                f"StudySettings.repeats={self.repeats}: of StudySettings.cases={self.cases}, {most} at most can be "
                "repeated a third of the cases later"
            )
        if not self.structures or len(set(self.structures)) < len(self.structures) or "" in self.structures:
            raise UserError("StudySettings.structures: give one or more, each once")
        if not 0 < self.margin < SCALE[-1] - SCALE[0]:
            raise UserError(
                f"StudySettings.margin={self.margin:g}: must lie between 0 and {SCALE[-1] - SCALE[0]} points"
            )
        if min(self.pixel_mm, self.slice_mm, self.slices) < 0 or self.fov_mm <= 0:
            raise UserError(
                "StudySettings.pixel_mm, StudySettings.slice_mm, StudySettings.slices and StudySettings.fov_mm "
                "must not be negative"
            )


def pair(name: str, text: str) -> tuple[int, int]:
    """ "50+50" as (real, synthetic). Raises `UserError` for anything else."""
    found = re.fullmatch(r"\s*(\d{1,4})\s*\+\s*(\d{1,4})\s*", text)
    if not found:
        raise UserError(f"{name}={text}: expected REAL+SYNTHETIC, for example 50+50")
    return int(found[1]), int(found[2])


def gap(total: int) -> int:
    """Least distance between the two readings of a repeated case, in a study of `total` cases: a third of them."""
    return max(total // 3, 2)


def order(
    real: Sequence[str], synthetic: Sequence[str], repeats: tuple[int, int], rng: np.random.Generator
) -> list[str]:
    """One reader's sequence of cases: every case once, in a random order, and `repeats` (real, synthetic) of them,
    drawn for this reader, once more, at a random place at least `gap` cases after the first."""
    total = len(real) + len(synthetic)
    again = [*rng.permutation(list(real))[: repeats[0]], *rng.permutation(list(synthetic))[: repeats[1]]]
    once = list(rng.permutation([case for case in (*real, *synthetic) if case not in again]))
    # What comes back must come early enough the first time.
    early = total - gap(total) - len(again)
    sequence = [str(case) for case in (*rng.permutation([*again, *once[:early]]), *once[early:])]
    for case in rng.permutation(again):
        first = sequence.index(case)
        sequence.insert(int(rng.integers(first + gap(total), len(sequence) + 1)), str(case))
    return sequence
