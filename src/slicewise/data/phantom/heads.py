"""One head phantom from its seed: tissue of the procedural or of real anatomy, then one scanner."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from slicewise.data.phantom import scanner
from slicewise.data.phantom.labels import TissueVolume
from slicewise.data.phantom.people import SPLITS, Person, default_cache, find_people, load_parts
from slicewise.errors import UserError
from slicewise.hu import round_hu
from slicewise.volume import Acquisition, Volume

PHANTOM_VERSION = 3
SIZES = (128, 256, 512)


@dataclass(frozen=True)
class PhantomSettings:
    """How the heads are made.

    Attributes
    ----------
    size : pixels per side in plane: 128, 256 or 512.
    fov_mm : in-plane field of view in mm.
    slice_mm : slice spacing and slice profile width in mm.
    pathology : probability that a head has a mild pathology (bleed, infarct, atrophy or calcification).
    table : probability that the head holder is in view.
    noise_hu : mean noise standard deviation in the brain in HU at pixels up to 1 mm; it varies a little from head to
        head, and larger pixels average some of it away (a factor 0.78 at 128 pixels).
    anatomy : folder of label maps of real heads (NIfTI) to make heads from; none: the procedural anatomy.
    numbering : TOML table of the maps' label numbers; none: FreeSurfer's and SynthSeg's.
    split_people : how many persons of the folder serve train, val and test; no two splits share one.
    split : shares of heads for train, val and test.
    cache : folder for what is computed once of every map; none: the user's cache folder.
    """

    size: int = 256
    fov_mm: float = 240.0
    slice_mm: float = 5.0
    pathology: float = 0.2
    table: float = 0.0
    noise_hu: float = 4.0
    anatomy: Path | None = None
    numbering: Path | None = None
    split_people: tuple[int, int, int] = (10, 3, 3)
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    cache: Path | None = None


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
    description: dict = field(default_factory=dict)
    split: str = ""
    source: str = ""



def make_phantom(seed: int, settings: PhantomSettings = PhantomSettings()) -> Phantom:
    """The head of this seed: the same bits for the same seed and settings on one platform. Raises `UserError` for bad
    settings and for label maps that are none."""
    s = check_settings(settings)
    rng = np.random.default_rng([PHANTOM_VERSION, seed])
    split, source, model = "", f"phantom seed {seed}", "Procedural head phantom"
    if s.anatomy is None:
        from slicewise.data.phantom.procedural import make_tissue

        tissue = make_tissue(rng, s.size, s.fov_mm, s.slice_mm, s.pathology, s.table)
    else:
        from slicewise.data.phantom import real

        people = find_people(s.anatomy, s.numbering, s.split_people)
        person = draw_person(rng, people, s.split)
        split, source, model = person.split, f"{source} of {person.name}", "Head phantom from real anatomy"
        parts = load_parts(person, s.numbering, s.cache or default_cache())
        tissue = real.make_tissue(rng, parts, s.size, s.fov_mm, s.slice_mm)
    hu, labels, noise_hu = scan(rng, tissue, s)
    about = {"seed": seed, "version": PHANTOM_VERSION, "noise_hu": round(noise_hu, 3), "source": source}
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


def draw_person(rng: np.random.Generator, people: tuple[Person, ...], shares: tuple[float, float, float]) -> Person:
    """A person of the split that the shares draw; splits without a person get no head."""
    held = [share if any(p.split == split for p in people) else 0.0 for split, share in zip(SPLITS, shares)]
    split = SPLITS[int(rng.choice(3, p=np.array(held) / sum(held)))]
    there = [person for person in people if person.split == split]
    return there[int(rng.integers(len(there)))]


def scan(rng: np.random.Generator, tissue: TissueVolume, s: PhantomSettings) -> tuple[np.ndarray, np.ndarray, float]:
    """Image a tissue volume: float32 (Z, size, size) HU, uint8 labels on the same grid, and the noise in HU."""
    dz, pixel, _ = tissue.step_mm
    factor = tissue.n_fine // s.size
    centres = tissue.centres
    # Warp and tilt decide where the vertex is: leave at most one slice of air above it.
    scalp = (tissue.labels[centres] > 0).sum((1, 2)) * pixel * pixel > 150.0
    first = max(int(np.argmax(scalp)) - int(rng.random() < 0.3), 0)
    centres = centres[first:]
    sharp = np.full((len(centres), tissue.n_fine, tissue.n_fine), scanner.AIR_HU, np.float32)
    sharp[:, tissue.crop[0], tissue.crop[1]] = scanner.integrate_slices(tissue.hu, centres, dz, s.slice_mm)
    seen = scanner.reduce_pixels(scanner.blur_in_plane(sharp, pixel, float(rng.uniform(1.1, 1.7))), factor)
    step = s.fov_mm / s.size
    seen += scanner.beam_hardening(seen, step, float(rng.uniform(0.3, 1.0)))
    # Pixels over 1 mm average some of the grain away (real head: 3.6 HU at 0.98 mm, 2.75 HU at 1.95 mm).
    level = s.noise_hu * float(rng.uniform(0.85, 1.15)) * min(1.0, step**-0.4)
    if level > 0:
        seen += scanner.noise(rng, seen, step, level)
    labels = np.zeros((len(centres), tissue.n_fine, tissue.n_fine), np.uint8)
    labels[:, tissue.crop[0], tissue.crop[1]] = tissue.labels[centres]
    return seen, np.ascontiguousarray(labels[:, factor // 2 :: factor, factor // 2 :: factor]), level


def patient_id(seed: int) -> str:
    """Patient ID of the head of a seed."""
    return f"PHANTOM-{seed:08d}"


def check_settings(s: PhantomSettings) -> PhantomSettings:
    """The settings, or a `UserError` that says which one is wrong."""
    if s.size not in SIZES:
        raise UserError(
            f"--size {s.size}: the phantom is made at {', '.join(map(str, SIZES))} pixels; take one of them"
        )
    if not 200 <= s.fov_mm <= 400:
        raise UserError(f"--fov-mm {s.fov_mm:g}: a head needs 200 to 400 mm; the default is 240")
    if not 0.5 <= s.slice_mm <= 12:
        raise UserError(f"--slice-mm {s.slice_mm:g}: slices are 0.5 to 12 mm thick; the default is 5")
    for name, value in (("pathology", s.pathology), ("table", s.table)):
        if not 0 <= value <= 1:
            raise UserError(f"--{name} {value:g}: a probability lies between 0 and 1")
    if len(s.split) != 3 or min(s.split) < 0 or abs(sum(s.split) - 1) > 1e-6:
        raise UserError(f"--split {s.split}: give three shares (train, val, test) that sum to 1")
    if not 0 <= s.noise_hu <= 50:
        raise UserError(f"--noise-hu {s.noise_hu:g}: noise is 0 to 50 HU; the default is 4")
    return s
