"""One head phantom from its seed: tissue of the procedural or of real anatomy, then one scanner."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slicewise.data.phantom.people import SPLITS, Person, default_cache, find_people, load_person, load_shape
from slicewise.data.settings import PhantomSettings
from slicewise.errors import UserError
from slicewise.hu import round_hu
from slicewise.volume import Acquisition, Volume

PHANTOM_VERSION = 3
PATHOLOGY = 100  # its own stream of random numbers
SIZES = (128, 256, 512)
USUAL = PhantomSettings()


@dataclass(frozen=True)
class Phantom:
    """One head.

    Attributes
    ----------
    volume : the scan, int16 HU.
    labels : uint8, same shape, the tissue at each voxel's centre; names in `LABELS`.
    description : what the head is (sizes in mm, HU of its tissues, pathology, noise), plain JSON types.
    split : "train", "val" or "test" by the person it comes from; empty for the procedural anatomy.
    source : what made it, in words: seed and persons.
    """

    volume: Volume
    labels: np.ndarray
    description: dict[str, Any] = field(default_factory=dict)
    split: str = ""
    source: str = ""


def make_phantom(seed: int, settings: PhantomSettings = USUAL) -> Phantom:
    """The head of this seed: the same bits for the same seed and settings on one platform. Raises `UserError` for bad
    settings and for label maps that are none."""
    from slicewise.data.phantom.pathology import paint_pathology
    from slicewise.data.phantom.scanner import Scanner, scan

    s = check_settings(settings)
    split, source, model = "", f"phantom seed {seed}", "Procedural head phantom"
    if s.anatomy is None:
        from slicewise.data.phantom.procedural import make_tissue

        tissue = make_tissue(np.random.default_rng([PHANTOM_VERSION, seed]), s.size, s.fov_mm, s.slice_mm)
    else:
        from slicewise.data.phantom import real

        descent = draw_descent(seed, s)
        split, model = descent.person.split, "Head phantom from real anatomy"
        source += f" of {descent.person.name}"
        if descent.share:
            source += f", {descent.share:.2f} of the way to {descent.other.name}"
        parts, fields = load_person(descent.person, s.numbering, cache_of(s))
        shapes = [load_shape(p, descent.first, s.numbering, cache_of(s)) for p in descent.morphed]
        morph = descent.share * (shapes[0] - shapes[1]) if shapes else 0.0
        tissue = real.make_tissue(descent.rng, parts, fields, morph, s.size, s.fov_mm, s.slice_mm, s.device)
    chance = np.random.default_rng([PHANTOM_VERSION, seed, PATHOLOGY])
    tissue.description["pathology"] = paint_pathology(chance, tissue) if chance.random() < s.pathology else ""
    profile = s.profile_mm or s.slice_mm
    imaging = Scanner(
        s.size,
        s.fov_mm,
        s.slice_mm,
        profile,
        s.kernel,
        s.noise_hu,
        s.hardening,
        s.offset_hu,
        s.table,
        s.motion,
        s.metal,
    )
    hu, labels, drawn = scan((PHANTOM_VERSION, seed), tissue, imaging)
    about = {"seed": seed, "version": PHANTOM_VERSION, "source": source} | drawn
    acquisition = Acquisition(
        patient_id=patient_id(seed),
        series_description=model,
        manufacturer="slicewise",
        model=f"phantom {PHANTOM_VERSION}",
        slice_thickness_mm=s.slice_mm,
        source=source,
    )
    step = s.fov_mm / s.size
    volume = Volume.regular(round_hu(hu), (s.slice_mm, step, step), acquisition)
    return Phantom(volume, labels, tissue.description | about, split, source)


@dataclass(frozen=True)
class Descent:
    """Whom a head comes from: `share` of the way from `person` to `other` (0 for a third of heads), both of one split,
    whose shapes are told from its `first` person. `rng` draws the rest of the head."""

    person: Person
    other: Person
    first: Person
    share: float
    rng: np.random.Generator

    @property
    def morphed(self) -> tuple[Person, ...]:
        """The two persons whose shapes are needed; none without a morph."""
        return (self.person, self.other) if self.share else ()


def draw_descent(seed: int, s: PhantomSettings) -> Descent:
    """A person of the split that the shares draw, and another of the same split. Splits without a person get no
    head."""
    assert s.anatomy is not None
    rng = np.random.default_rng([PHANTOM_VERSION, seed])
    people = find_people(s.anatomy, s.numbering, s.split_people)
    held = [share if any(p.split == split for p in people) else 0.0 for split, share in zip(SPLITS, s.split)]
    if not sum(held):
        raise UserError(
            f"PhantomSettings.split={s.split}: the splits that get heads hold no person; see "
            "PhantomSettings.split_people"
        )
    split = SPLITS[int(rng.choice(3, p=np.array(held) / sum(held)))]
    there = [person for person in people if person.split == split]
    one, other = there[int(rng.integers(len(there)))], there[int(rng.integers(len(there)))]
    share = float(rng.uniform(0.1, 0.7)) if rng.random() < 0.67 and one != other else 0.0
    return Descent(one, other, there[0], share, rng)


def cache_of(s: PhantomSettings) -> Path:
    """The folder for what is computed once of every map."""
    return s.cache or default_cache()


def patient_id(seed: int) -> str:
    """Patient ID of the head of a seed."""
    return f"PHANTOM-{seed:08d}"


def check_settings(s: PhantomSettings) -> PhantomSettings:
    """The settings, or a `UserError` that says which one is wrong."""
    if s.size not in SIZES:
        raise UserError(
            f"PhantomSettings.size={s.size}: the phantom is made at {', '.join(map(str, SIZES))} pixels; choose one of "
            "them"
        )
    if not 200 <= s.fov_mm <= 400:
        raise UserError(f"PhantomSettings.fov_mm={s.fov_mm:g}: a head needs 200 to 400 mm; the default is 240")
    if not 0.5 <= s.slice_mm <= 12:
        raise UserError(f"PhantomSettings.slice_mm={s.slice_mm:g}: slices are 0.5 to 12 mm thick; the default is 5")
    if s.profile_mm and not 0.5 <= s.profile_mm <= 12:
        raise UserError(f"PhantomSettings.profile_mm={s.profile_mm:g}: 0.5 to 12 mm, or 0 for the slice spacing")
    if s.kernel not in ("soft", "standard", "bone"):
        raise UserError(f"PhantomSettings.kernel={s.kernel}: unknown; choose soft, standard or bone")
    if not 0 <= s.hardening <= 5:
        raise UserError(f"PhantomSettings.hardening={s.hardening:g}: 0 (none) to 5 times the usual; the default is 1")
    for name in ("pathology", "table", "motion", "metal"):
        value = getattr(s, name)
        if not 0 <= value <= 1:
            raise UserError(f"PhantomSettings.{name}={value:g}: a probability lies between 0 and 1")
    if len(s.split) != 3 or min(s.split) < 0 or abs(sum(s.split) - 1) > 1e-6:
        raise UserError(f"PhantomSettings.split={s.split}: give three shares (train, val, test) that sum to 1")
    if not 0 <= s.offset_hu <= 20:
        raise UserError(
            f"PhantomSettings.offset_hu={s.offset_hu:g}: offsets of slices are 0 to 20 HU; the default is 0.6"
        )
    if not 0 <= s.noise_hu <= 50:
        raise UserError(f"PhantomSettings.noise_hu={s.noise_hu:g}: noise is 0 to 50 HU; the default is 4")
    return s
