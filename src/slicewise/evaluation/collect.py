"""Both sets of an evaluation, read once and measured: what is kept of each volume is small, the rest lies in a cache.

Volumes pass through in batches. Surveys lie in the cache under the hash of the volume's voxels, so that a second
evaluation reads instead of computing, and one that was stopped resumes.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from slicewise.data.resample import Grid, resample_volume
from slicewise.data.sets import Member, VolumeSet
from slicewise.errors import UserError
from slicewise.evaluation.settings import EvaluateSettings
from slicewise.hu import Window, to_unit
from slicewise.io.cache import Cache, key_of
from slicewise.metrics.kernel import batch_mmd2
from slicewise.metrics.memorisation import query_slices, slice_pictures, volume_picture
from slicewise.metrics.structure import at_depth, isotropic_unit, ms_ssim, ms_ssim_legacy, scales_that_fit
from slicewise.metrics.survey import (
    VERSION,
    Anatomy,
    Features,
    all_features,
    anatomy,
    anatomy_arrays,
    anatomy_from,
    digest,
    feature_names,
    features_arrays,
    features_from,
)
from slicewise.volume import Volume

if TYPE_CHECKING:
    from slicewise.metrics.features import Extractor

Key = tuple[str, Window]
PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Frame:
    """The grid that both sets lie on.

    Attributes
    ----------
    shape : pixels (rows, columns).
    spacing : (z, y, x) in mm.
    depth : slices that voxel metrics see.
    """

    shape: tuple[int, int]
    spacing: tuple[float, float, float]
    depth: int

    @property
    def text(self) -> str:
        (rows, columns), (dz, dy, dx) = self.shape, self.spacing
        return f"{rows} x {columns} pixels of {dy:.3g} x {dx:.3g} mm, slices {dz:.3g} mm apart"


@dataclass
class Side:
    """What is kept of one set.

    Attributes
    ----------
    title : "REAL", "SYNTH" or "TRAIN", for messages.
    source : the set.
    names, digests, slices, anatomy, middles : one a volume that could be used, middles by plane and window.
    queries : for the audit: slice features, volume features, slice pictures, volume picture, one array a volume each.
    places : the slices that were looked for, one list a volume.
    members : place of each used volume in `source.members`.
    feature_keys : where its features lie in the cache.
    skipped : (name, reason) of what could not be used.
    notes : what was repaired, by volume.
    resampled : how many were brought onto the grid.
    """

    title: str
    source: VolumeSet
    names: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    slices: list[int] = field(default_factory=list)
    anatomy: list[Anatomy] = field(default_factory=list)
    middles: dict[Key, list[np.ndarray]] = field(default_factory=dict)
    queries: dict[str, list[np.ndarray]] = field(default_factory=dict)
    places: list[list[int]] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    feature_keys: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    resampled: int = 0

    @property
    def patients(self) -> list[str]:
        """Whose each used volume is; its own where the whole set bears one name, which tells nothing apart."""
        if len({member.patient for member in self.source.members}) == 1:
            return [str(place) for place in self.members]
        return [self.source.members[place].patient for place in self.members]


@dataclass
class Voxels:
    """Values of the voxel metrics while batches stream by.

    Attributes
    ----------
    between, floor : bMMD² (biased, unbiased) of real and synthetic, of real and real batches, by window.
    ms_ssim : values by (title of the side, window, "correct" or "legacy").
    """

    between: dict[Window, list[tuple[float, float]]] = field(default_factory=dict)
    floor: dict[Window, list[tuple[float, float]]] = field(default_factory=dict)
    ms_ssim: dict[tuple[str, Window, str], list[float]] = field(default_factory=dict)


@dataclass
class Work:
    """What the parts of one evaluation share. The frame is that of the first real volume."""

    settings: EvaluateSettings
    extractor: "Extractor"
    cache: Cache
    audited: bool
    frame: Frame | None = None

    def features(
        self, volume: Volume, planes: Sequence[str] = PLANES, windows: Sequence[Window] = ()
    ) -> tuple[str, dict[Key, Features]]:
        """Features of a volume, kept or computed, and the key under which they are kept; of both windows where none is
        named."""
        windows = windows or self.settings.windows
        whole = PLANES if self.settings.all_slices else ("axial",) if self.audited else ()
        texts = " ".join(f"{w.lo:g} {w.hi:g}" for w in windows)
        which = f"{' '.join(planes)}, all of {' '.join(whole)} {self.settings.step_mm:g}"
        about = f"features {VERSION} {self.extractor.name} {texts} {which}"
        key = key_of(digest(volume), about)
        kept = self.cache.get(key)
        if kept is None:
            found = all_features(volume, self.extractor, windows, self.settings.step_mm, planes, whole)
            self.cache.put(key, features_arrays(found))
            return key, found
        found = features_from(kept)
        if any(f.rows.shape[1] != self.extractor.features for f in found.values()):
            raise UserError(
                f"{self.cache.folder}: holds features of another extractor in place of those of {self.extractor.name}; "
                "delete the folder and run it again"
            )
        return key, found

    def rows_of(self, side: Side, key: Key) -> Callable[[], Iterator[np.ndarray]]:
        """The feature vectors of one plane and window, volume after volume, from the cache, as often as asked for."""
        name = feature_names(*key)[0]

        def stream() -> Iterator[np.ndarray]:
            for kept_under in side.feature_keys:
                kept = self.cache.get(kept_under, [name])
                if kept is None:
                    raise UserError(f"{self.cache.folder}: features were deleted while in use; run it again")
                yield kept[name]

        return stream

    def anatomy(self, volume: Volume) -> Anatomy:
        """Anatomy of a volume, kept or measured."""
        window = self.settings.windows[1]
        key = key_of(digest(volume), f"anatomy {VERSION} {window.lo:g} {window.hi:g}")
        kept = self.cache.get(key)
        if kept is not None:
            return anatomy_from(kept)
        found = anatomy(volume, window)
        self.cache.put(key, anatomy_arrays(found))
        return found


def stream_sets(sides: Sequence[Side], work: Work, bar: Any) -> Voxels:
    """Read both sets once, batch by batch in step, and keep what is needed of every volume."""
    batch = min(work.settings.batch, *(len(side.source.members) for side in sides))
    voxels, number = Voxels(), 0
    before: list[np.ndarray] = []
    with ThreadPoolExecutor(1) as pool:
        streams = [_measured(side, work, pool, bar) for side in sides]
        pairs: list[Future[None]] = []  # of the batch before, compared while features of this one are computed
        while True:
            real, synth = (list(islice(stream, batch)) for stream in streams)
            if not real and not synth:
                for pair in pairs:
                    pair.result()
                return voxels
            assert work.frame is not None
            for window in work.settings.windows:
                x, y = (_voxel_rows(volumes, work.frame, window) for volumes in (real, synth))
                if len(real) == len(synth) == batch:
                    voxels.between.setdefault(window, []).append(batch_mmd2(x, y))
                if number % 2 and len(before) == len(real) == batch:
                    old = _voxel_rows(before, work.frame, window)
                    voxels.floor.setdefault(window, []).append(batch_mmd2(old, x))
            for pair in pairs:
                pair.result()
            pairs = [
                pool.submit(_pair_similarity, side, volumes, len(side.members) - len(volumes), work, voxels)
                for side, volumes in zip(sides, (real, synth))
            ]
            before, number = real, number + 1


def _measured(side: Side, work: Work, pool: ThreadPoolExecutor, bar: Any) -> Iterator[np.ndarray]:
    """HU of every usable volume of a set, once all else of it is measured."""
    task = bar.add_task(f"{side.title:6}", total=len(side.source.members))
    for place, member in enumerate(side.source.members):
        volume = read_member(side, member, work.settings, work.frame)
        bar.advance(task)
        if volume is None:
            continue
        work.frame = work.frame or frame_of(volume, work.settings)
        pending = pool.submit(work.anatomy, volume)
        key, found = work.features(volume)
        for place_of, features in found.items():
            side.middles.setdefault(place_of, []).append(features.rows[features.middle])
        if work.audited:
            keep_queries(side, volume, found["axial", work.settings.windows[1]])
        side.names.append(member.name)
        side.digests.append(digest(volume))
        side.slices.append(len(volume.hu))
        side.members.append(place)
        side.feature_keys.append(key)
        side.anatomy.append(pending.result())
        yield volume.hu


def read_member(side: Side, member: Member, settings: EvaluateSettings, frame: Frame | None) -> Volume | None:
    """A volume on the common grid (its own, where that is not known yet); None where its files are damaged, which is
    noted. Raises `UserError` where it does not belong into a comparison."""
    try:
        reading = member.read()
    except UserError as error:
        side.skipped.append((member.name, str(error)))
        return None
    side.notes += [f"{member.name}: {note}" for note in reading.notes]
    volume = reading.volume
    if volume.hu.min() == volume.hu.max():
        raise UserError(
            f"{member.name}: every voxel is {volume.hu.flat[0]} HU, so there is no image in it; leave it out"
        )
    frame = frame or frame_of(volume, settings)
    if _on(volume, frame):
        return volume
    here = Frame(volume.hu.shape[1:], volume.spacing, 0).text + ("" if volume.is_even else ", uneven")
    (rows, columns), (dz, dy, dx) = frame.shape, frame.spacing
    if not settings.resample:
        raise UserError(
            f"{side.title} {member.name}: {here}; the first real volume has {frame.text}. "
            "Add EvaluateSettings.resample=True to bring all volumes onto that grid, or prepare both sets alike"
        )
    if rows != columns or abs(dy - dx) > 1e-3 * dx:
        raise UserError(
            f"EvaluateSettings.resample: the first real volume has {frame.text}, and only square grids can be made"
        )
    side.resampled += 1
    try:
        # Air above is kept, as it is in volumes that lie on the grid already: depths must mean the same in both.
        return resample_volume(volume, Grid(size=rows, fov_mm=rows * dx, slice_mm=dz, crop_air_above=False))
    except UserError as error:
        side.skipped.append((member.name, str(error)))
        return None


def frame_of(volume: Volume, settings: EvaluateSettings) -> Frame:
    """The grid that a first volume sets. Raises `UserError` where its slices are uneven."""
    if not volume.is_even:
        raise UserError(
            f"{volume.acquisition.source}: slices are unevenly spaced, and the first real volume sets the grid; "
            "prepare the real set first (slicewise prepare)"
        )
    return Frame(volume.hu.shape[1:], volume.spacing, settings.depth or len(volume.hu))


def read_again(side: Side, number: int, settings: EvaluateSettings, frame: Frame) -> Volume:
    """A volume that was read before, on the same grid; what is noted while reading is not noted twice."""
    member = side.source.members[side.members[number]]
    volume = read_member(Side(side.title, side.source), member, settings, frame)
    if volume is None:
        raise UserError(f"{member.name}: changed during the evaluation; run it again")
    return volume


def _on(volume: Volume, frame: Frame) -> bool:
    """Whether a volume lies on the grid, to a thousandth of its spacing."""
    same = np.allclose(volume.spacing, frame.spacing, rtol=1e-3)
    return volume.is_even and volume.hu.shape[1:] == frame.shape and bool(same)


def _voxel_rows(volumes: Sequence[np.ndarray], frame: Frame, window: Window) -> np.ndarray:
    """Volumes in [-1, 1] at the common depth, float32 (n, voxels)."""
    if not volumes:
        return np.empty((0, 1), np.float32)
    return np.stack([to_unit(at_depth(hu, frame.depth), window).ravel() for hu in volumes])


def _pairs(patients: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The first volume with the second, the third with the fourth, …, but never two of one patient: each goes with the
    next of another's."""
    waiting = list(range(len(patients)))
    while waiting:
        first = waiting.pop(0)
        other = next((k for k in waiting if patients[k] != patients[first]), None)
        if other is not None:
            waiting.remove(other)
            yield first, other


def _pair_similarity(side: Side, volumes: Sequence[np.ndarray], before: int, work: Work, voxels: Voxels) -> None:
    """MS-SSIM of pairs of volumes, kept or computed; `before` volumes of the set came before them."""
    assert work.frame is not None
    windows = work.settings.windows
    for first, other in _pairs(side.patients[before : before + len(volumes)]):
        if len(voxels.ms_ssim.get((side.title, windows[0], "legacy"), ())) >= work.settings.pairs:
            return
        x, y = (at_depth(volumes[k], work.frame.depth) for k in (first, other))
        texts = " ".join(f"{w.lo:g} {w.hi:g}" for w in windows)
        key = key_of(x, y, f"ms-ssim from 0, {VERSION} {work.frame.spacing} {texts}")
        kept = work.cache.get(key)
        if kept is None:
            kept = {f"{i}": np.array(_similarities(x, y, work.frame, window)) for i, window in enumerate(windows)}
            work.cache.put(key, kept)
        for i, window in enumerate(windows):
            for form, value in zip(("correct", "legacy"), kept[f"{i}"].tolist()):
                voxels.ms_ssim.setdefault((side.title, window, form), []).append(value)


def _similarities(x: np.ndarray, y: np.ndarray, frame: Frame, window: Window) -> tuple[float, float]:
    """MS-SSIM of two volumes, correct (on isotropic voxels; NaN where they are too small) and legacy."""
    a, b = (isotropic_unit(hu, frame.spacing, window) for hu in (x, y))
    correct = ms_ssim(a + 1, b + 1, 2.0) if scales_that_fit(a.shape) else np.nan
    return correct, ms_ssim_legacy(to_unit(x, window), to_unit(y, window))


def keep_queries(side: Side, volume: Volume, axial: Features) -> None:
    """Keep what the audit looks for in the training data: three slices and the whole, as features and as pictures."""
    places = query_slices(len(axial.indices))
    indices = [int(axial.indices[p]) for p in places]
    for name, rows in (
        ("slices, features", axial.rows[places]),
        ("volumes, features", axial.rows.mean(axis=0, keepdims=True)),
        ("slices, correlation", slice_pictures(volume.hu[indices])),
        ("volumes, correlation", volume_picture(volume.hu)),
    ):
        side.queries.setdefault(name, []).append(rows)
    side.places.append(indices)
