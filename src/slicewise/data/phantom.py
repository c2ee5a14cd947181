"""Data from nothing: procedural heads in Hounsfield units, each from its own seed, no two alike.

`make_phantom` paints one head (`anatomy_*`) on a fine grid and scans it (`scanner`); `write_phantoms` makes a data set
of them as DICOM series. Shape statistics come from the brain masks of TCIA head and neck scans (CC BY 4.0, see
ATTRIBUTION.md).
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from slicewise.data import scanner
from slicewise.data.anatomy_brain import paint_brain, paint_pathology
from slicewise.data.anatomy_shapes import LABELS, Canvas, Person, draw_person, expand, linear_matrix, smooth_noise
from slicewise.data.anatomy_skull import (
    cavity,
    paint_air,
    paint_ears,
    paint_orbits,
    paint_skull,
    paint_soft_tissue,
    paint_table,
    skin,
)
from slicewise.errors import UserError
from slicewise.hu import round_hu
from slicewise.progress import counting_bar
from slicewise.volume import Acquisition, Volume
from slicewise.workers import start_worker

PHANTOM_VERSION = 2
SIZES = (128, 256, 512)

__all__ = ["LABELS", "PHANTOM_VERSION", "Phantom", "PhantomSettings", "make_phantom", "write_phantoms"]


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
    """

    size: int = 256
    fov_mm: float = 240.0
    slice_mm: float = 5.0
    pathology: float = 0.2
    table: float = 0.0
    noise_hu: float = 4.0


@dataclass(frozen=True)
class Phantom:
    """One head.

    Attributes
    ----------
    volume : the scan, int16 HU.
    labels : uint8, same shape, the tissue at each voxel's centre; names in `LABELS`.
    description : what the head is (sizes in mm, HU of its tissues, pathology, noise), plain JSON types.
    """

    volume: Volume
    labels: np.ndarray
    description: dict = field(default_factory=dict)


def make_phantom(seed: int, settings: PhantomSettings = PhantomSettings()) -> Phantom:
    """The head of this seed: the same bits for the same seed and settings on one platform."""
    s = check_settings(settings)
    rng = np.random.default_rng([PHANTOM_VERSION, seed])
    person = draw_person(rng, s.pathology)
    # Sub-slices at most 1.7 mm apart; in plane at most 1 mm, whatever the output's pixel.
    per_slice = max(1, int(np.ceil(s.slice_mm / 1.7)))
    dz = s.slice_mm / per_slice
    factor = 2 if s.fov_mm / s.size > 1.2 else 1
    n_fine = s.size * factor
    pixel = s.fov_mm / n_fine
    top = 8 + person.height + person.skull + person.scalp + 8 + s.slice_mm * float(rng.uniform(0, 1))
    bottom = float(rng.uniform(-80, -66))
    n_slices = round((top - bottom) / s.slice_mm)
    n_z = n_slices * per_slice + per_slice
    canvas, crop = _canvas(rng, person, (n_z, n_fine, n_fine), (dz, pixel, pixel), top + per_slice // 2 * dz)
    pathology = _paint(canvas, person, float(rng.random()) < s.table)
    centres = np.arange(n_slices) * per_slice + per_slice // 2
    # Warp and tilt decide where the vertex is: leave at most one slice of air above it.
    scalp = (canvas.labels[centres] > 0).sum((1, 2)) * pixel * pixel > 150.0
    first = max(int(np.argmax(scalp)) - int(rng.random() < 0.3), 0)
    centres = centres[first:]
    n_slices = len(centres)
    sharp = np.full((n_slices, n_fine, n_fine), scanner.AIR_HU, np.float32)
    sharp[:, crop[0], crop[1]] = scanner.integrate_slices(canvas.hu, centres, dz, s.slice_mm)
    seen = scanner.reduce_pixels(scanner.blur_in_plane(sharp, pixel, float(rng.uniform(1.1, 1.7))), factor)
    step = s.fov_mm / s.size
    seen += scanner.beam_hardening(seen, step, float(rng.uniform(0.3, 1.0)))
    # Pixels over 1 mm average some of the grain away (real head: 3.6 HU at 0.98 mm, 2.75 HU at 1.95 mm).
    level = s.noise_hu * float(rng.uniform(0.85, 1.15)) * min(1.0, step**-0.4)
    if level > 0:
        seen += scanner.noise(rng, seen, step, level)
    labels = np.zeros((n_slices, n_fine, n_fine), np.uint8)
    labels[:, crop[0], crop[1]] = canvas.labels[centres]
    described = {k: (round(v, 3) if isinstance(v, float) else v) for k, v in vars(person).items()}
    described |= {"seed": seed, "version": PHANTOM_VERSION, "pathology": pathology, "noise_hu": round(level, 3)}
    acquisition = Acquisition(
        patient_id=_patient_id(seed),
        series_description="Procedural head phantom",
        manufacturer="slicewise",
        model=f"phantom {PHANTOM_VERSION}",
        slice_thickness_mm=s.slice_mm,
        source=f"phantom seed {seed}",
    )
    volume = Volume.regular(round_hu(seen), (s.slice_mm, step, step), acquisition)
    return Phantom(volume, np.ascontiguousarray(labels[:, factor // 2 :: factor, factor // 2 :: factor]), described)


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
    if not 0 <= s.noise_hu <= 50:
        raise UserError(f"--noise-hu {s.noise_hu:g}: noise is 0 to 50 HU; the default is 4")
    return s


def write_phantoms(
    out: Path, count: int, seed: int = 0, settings: PhantomSettings = PhantomSettings(), workers: int = 1
) -> list[Path]:
    """Write heads `seed` .. `seed + count - 1` under `out`; returns their DICOM folders.

        out/dicom/<patient id>/           one CT series a head, each a patient of its own
        out/labels/<patient id>.nii.gz    tissue labels (uint8, same grid), names in out/labels/labels.json
        out/labels/<patient id>.json      what the head is, and the settings that made it

    A head that is there already with these settings is left alone, so a run that was stopped goes on where it was.
    Raises `UserError` for bad settings, for a head made with other settings, and where `out` cannot be written.
    """
    check_settings(settings)
    if count < 1:
        raise UserError(f"--count {count}: ask for one phantom at least")
    if seed < 0:
        raise UserError(f"--seed {seed}: seeds are whole numbers from 0")
    out = Path(out)
    try:
        for folder in ("dicom", "labels"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        _replace_text(out / "labels" / "labels.json", json.dumps(LABELS, indent=1))
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror}); give another folder") from error
    seeds = range(seed, seed + count)
    missing = [one for one in seeds if not _is_written(out, one, settings)]
    write_each(partial(_write_one, out, settings), missing, workers, count)
    return [out / "dicom" / _patient_id(one) for one in seeds]


def write_each(write: Callable[[int], None], seeds: Sequence[int], workers: int, total: int) -> None:
    """`write(seed)` for every seed, in as many processes as there are workers, with a progress bar; the others of
    `total` are there already."""
    with counting_bar(True, transient=True) as bar:
        task = bar.add_task("phantoms", total=total, completed=total - len(seeds))
        if workers <= 1 or len(seeds) <= 1:
            for seed in seeds:
                write(seed)
                bar.advance(task)
            return
        with (
            _one_thread_each(),
            ProcessPoolExecutor(min(workers, len(seeds)), get_context("spawn"), start_worker) as pool,
        ):
            jobs = [pool.submit(write, seed) for seed in seeds]
            try:
                for job in as_completed(jobs):
                    job.result()
                    bar.advance(task)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes begun meanwhile do linear algebra in one thread unless the user says otherwise: with a process for
    every processor, more threads only wait for one another."""
    held = [name for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name not in os.environ]
    os.environ.update(dict.fromkeys(held, "1"))
    try:
        yield
    finally:
        for name in held:
            del os.environ[name]


def _patient_id(seed: int) -> str:
    return f"PHANTOM-{seed:08d}"


def _is_written(out: Path, seed: int, settings: PhantomSettings) -> bool:
    """Whether this head is there whole (its description is written last). Raises `UserError` if made otherwise."""
    note = out / "labels" / f"{_patient_id(seed)}.json"
    if not note.is_file() or not (out / "dicom" / _patient_id(seed)).is_dir():
        return False
    try:
        found = json.loads(note.read_text())
        made = (found["version"], found["settings"])
    except (ValueError, KeyError, TypeError):
        return False
    if made != (PHANTOM_VERSION, asdict(settings)):
        raise UserError(f"{note}: this head was made with other settings or another version; give a new folder")
    return True


def _write_one(out: Path, settings: PhantomSettings, seed: int) -> None:
    import nibabel

    from slicewise.io.dicom_write import SyntheticOrigin, write_series

    phantom = make_phantom(seed, settings)
    name = _patient_id(seed)
    folder = out / "dicom" / name
    origin = SyntheticOrigin(
        model="slicewise head phantom",
        version=str(PHANTOM_VERSION),
        seed=seed,
        volume=0,
        description=f"procedural head, pathology: {phantom.description['pathology'] or 'none'}",
    )
    try:
        shutil.rmtree(folder, ignore_errors=True)
        write_series(phantom.volume, folder, synthetic=origin, patient_id=name, series_description="Head phantom")
        # NIfTI keeps x, y, z order and RAS; DICOM is LPS.
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ phantom.volume.affine
        partial_file = out / "labels" / f".{name}.partial.nii.gz"
        nibabel.save(nibabel.Nifti1Image(phantom.labels.transpose(2, 1, 0), affine), partial_file)
        os.replace(partial_file, out / "labels" / f"{name}.nii.gz")
        described = phantom.description | {"settings": asdict(settings)}
        _replace_text(out / "labels" / f"{name}.json", json.dumps(described, indent=1))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write there ({error.strerror}); free space or give another folder"
        ) from error


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)


def _canvas(
    rng: np.random.Generator,
    person: Person,
    shape: tuple[int, int, int],
    step: tuple[float, float, float],
    top: float,
) -> tuple[Canvas, tuple[slice, slice]]:
    """The fine grid, cropped to the head in plane, with head coordinates: shifted, turned and gently warped."""
    n_z, n_y, n_x = shape
    shift = rng.normal(0, 1, 3) * (2.5, 2.5, 0)
    centre_y = (n_y - 1) / 2 + (8 + shift[1]) / step[1]
    centre_x = (n_x - 1) / 2 + shift[0] / step[2]
    y0, y1 = max(0, int(centre_y - 122 / step[1])), min(n_y, int(centre_y + 108 / step[1]))
    x0, x1 = max(0, int(centre_x - 92 / step[2])), min(n_x, int(centre_x + 92 / step[2]))
    y0, x0 = y0 // 2 * 2, x0 // 2 * 2
    z = (top - np.arange(n_z) * step[0]).astype(np.float32)[:, None, None]
    y = ((np.arange(y0, y1) - centre_y) * step[1]).astype(np.float32)[None, :, None]
    x = ((np.arange(x0, x1) - centre_x) * step[2]).astype(np.float32)[None, None, :]
    pitch, roll, yaw = np.deg2rad([person.tilt, rng.normal(0, 2.0), rng.normal(0, 3.0)])
    turn = _rotation(pitch, roll, yaw)
    full = (n_z, y1 - y0, x1 - x0)
    out = []
    for row in range(3):  # x, y, z of the head frame
        warp = 1.2 * smooth_noise(rng, full, step, 48.0) + 0.4 * smooth_noise(rng, full, step, 20.0)
        # Turn about the middle of the brain, (0, 5, 5).
        out.append(turn[row, 0] * x + turn[row, 1] * (y - 5) + turn[row, 2] * (z - 5) + warp + (0, 5, 5)[row])
    head_x, head_y, head_z = (v.astype(np.float32) for v in out)
    return Canvas(head_x, head_y, head_z, step, rng), (slice(y0, y1), slice(x0, x1))


def _rotation(pitch: float, roll: float, yaw: float) -> np.ndarray:
    """Rotation matrix float32 (3, 3) about x, then y, then z."""
    cp, sp, cr, sr, cy, sy = (f(a) for a in (pitch, roll, yaw) for f in (np.cos, np.sin))
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return (about_z @ about_y @ about_x).astype(np.float32)


def _paint(c: Canvas, person: Person, table: bool) -> str:
    """Paint the whole head; returns the description of its pathology."""
    every_other = (slice(None), slice(None, None, 2), slice(None, None, 2))
    up = (np.eye(c.x.shape[0], dtype=np.float32), *(linear_matrix(n, 2) for n in c.x.shape[1:]))
    coarse = (c.x[every_other], c.y[every_other], c.z[every_other])

    def enlarge(low: np.ndarray) -> np.ndarray:
        return expand(low, *up)

    # The base is more rugged than the vault.
    rugged = np.clip((-12 - c.z) / 12, 0, 1)
    inner = enlarge(cavity(person, c.rng, *coarse)) + (np.float32(0.3) + rugged) * c.noise(13.0)
    outside = enlarge(skin(person, c.rng, *coarse)) + np.float32(0.4) * c.noise(15.0) + np.float32(0.7) * c.noise(55.0)
    paint_soft_tissue(c, person, outside, inner)
    paint_skull(c, person, inner, outside)
    paint_orbits(c, outside)
    paint_air(c, person)
    paint_brain(c, person, inner)
    pathology = paint_pathology(c, person, inner)
    paint_ears(c, person, outside)
    if table:
        paint_table(c)
    return pathology
