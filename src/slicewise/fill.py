"""Missing slices of a head, drawn given all that is known of it.

The scan lies on the checkpoint's grid; its slices are given to every level of a pyramid, or to a denoiser alone, and
what is missing is sampled (see `pyramid.draw` and `ascii.between`). Real slices keep every voxel.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

import slicewise
from slicewise.ascii import Arm, between
from slicewise.data.resample import Grid, resample_volume
from slicewise.data.store import first_head_slice
from slicewise.diffusion.denoiser import Denoiser
from slicewise.errors import UserError
from slicewise.io.dicom import Reading
from slicewise.io.dicom_write import SyntheticOrigin
from slicewise.io.geometry import find_gaps, interpolate_gaps
from slicewise.io.provenance import RESAMPLED, Provenance, Step
from slicewise.pyramid import Pyramid, draw
from slicewise.sampling import ChainSettings
from slicewise.volume import Volume


@dataclass(frozen=True)
class Filled:
    """A filled scan, what drew its synthetic slices, and where the others came from."""

    volume: Volume
    origin: SyntheticOrigin
    source: Provenance


def fill_scan(
    model: Denoiser | Pyramid,
    reading: Reading,
    named: Collection[int] = (),
    *,
    name: str,
    seed: int = 0,
    complete: Sequence[Arm] = (),
    above_mm: float = 0.0,
    resample: bool = False,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda slices: None,
) -> Filled:
    """A scan with its holes filled, the slices `named` (on the model's grid) redrawn, and the head completed.

    `reading` is a scan with its holes (`read_volume(keep_holes=True)`), brought to the model's grid where `resample`
    says so; `name` is the checkpoint's, for the header. For the rest see `fill_volume`. Raises `UserError` as that
    does, and for a scan on another grid.
    """
    volume, missing = with_even_slices(reading.volume)
    volume, missing, steps = on_models_grid(model, volume, missing, resample)
    source, how = reading.source.after(*steps), [step.text for step in steps]
    volume = fill_volume(
        model,
        volume,
        sorted({*missing, *named}),
        seed=seed,
        complete=complete,
        above_mm=above_mm,
        device=device,
        progress=progress,
    )
    drawn = tuple(sorted(set(range(len(volume.hu))) - set(volume.acquisition.real_slices)))
    step = model.meta.get("step")
    origin = SyntheticOrigin(
        f"{model.meta.get('name', name)} step {step}", slicewise.__version__, seed, 0, "; ".join(how), drawn=drawn
    )
    return Filled(volume, origin, source)


def _off_grid(volume: Volume, model: Denoiser | Pyramid, remedy: str) -> UserError:
    size = model.recipe.size
    return UserError(
        f"{volume.acquisition.source or 'the volume'}: is not on the checkpoint's grid of even axial slices, {size} x "
        f"{size} pixels at {_mm(model)} mm; {remedy}"
    )


def _mm(model: Denoiser | Pyramid) -> str:
    return " x ".join(f"{s:g}" for s in model.recipe.spacing_mm)


def on_models_grid(
    model: Denoiser | Pyramid, volume: Volume, missing: Collection[int], resample: bool
) -> tuple[Volume, tuple[int, ...], tuple[Step, ...]]:
    """An even volume on the model's grid, which of its slices are missing there (see `on_grid`), and what was done for
    it. Raises `UserError` for a volume on another grid where it may not `resample`."""
    grid = Grid.of(model.recipe.size, model.recipe.spacing_mm)
    if grid.holds(volume):
        return volume, tuple(missing), ()
    if not resample:
        raise _off_grid(volume, model, "resample=True brings it there")
    step = Step(f"all slices resampled to {_mm(model)} mm", RESAMPLED)
    return *on_grid(volume, missing, grid), (step,)


def with_even_slices(volume: Volume) -> tuple[Volume, tuple[int, ...]]:
    """A volume whose holes hold linearly interpolated slices, and the numbers of those (see `geometry.find_gaps`)."""
    gaps = dict(find_gaps(volume.slice_steps)) if len(volume.hu) > 1 else {}
    added = [0] * len(volume.hu)
    for z, count in gaps.items():
        added[z] = count - 1
    places = np.arange(len(volume.hu)) + np.cumsum([0, *added[:-1]])
    missing = sorted(set(range(int(places[-1]) + 1)) - set(places.tolist()))
    return interpolate_gaps(volume, list(gaps.items())), tuple(missing)


def on_grid(volume: Volume, missing: Collection[int], grid: Grid) -> tuple[Volume, tuple[int, ...]]:
    """An even volume resampled to the grid of a checkpoint, and which of its slices are missing there: those of whose
    thickness more than half lies in a hole of the source. Raises `UserError` as `resample_volume` does."""
    made, dz = resample_volume(volume, grid), grid.slice_mm
    if not missing:
        return made, ()
    middle = np.array([(volume.hu.shape[2] - 1) / 2, (volume.hu.shape[1] - 1) / 2]) * volume.pixel_spacing[::-1]
    heights = volume.positions[:, 2] + middle[0] * volume.row_axis[2] + middle[1] * volume.column_axis[2]
    half, places = np.abs(np.gradient(heights)) / 2, made.positions[:, 2]
    covered = np.zeros(len(places))
    for z in missing:
        top, bottom = heights[z] + half[z], heights[z] - half[z]
        covered += np.clip(np.minimum(top, places + dz / 2) - np.maximum(bottom, places - dz / 2), 0, None) / dz
    return made, tuple(np.flatnonzero(covered > 0.5 + 1e-6).tolist())


def fill_volume(
    model: Denoiser | Pyramid,
    volume: Volume,
    missing: Collection[int],
    *,
    seed: int = 0,
    chain: ChainSettings | None = None,
    complete: Sequence[Arm] = (),
    above_mm: float = 0.0,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda slices: None,
) -> Volume:
    """A head with its missing slices drawn.

    Parameters
    ----------
    model : what `load_generator` read, on `device`.
    volume : the scan on the model's grid; what stands in its missing slices does not count.
    missing : which slices to draw, 0 the most superior.
    seed : key of the noise: another seed draws other slices.
    chain : how slices are sampled; none takes the usual settings.
    complete : "up" or "down" where the head continues beyond the scan, drawn as far as the plan says (pyramids only).
    above_mm : how much of the head is missing above the first slice, which else begins at the vertex.
    progress : called with the number of slices done.

    Returns the volume, `acquisition.synthetic`, with `acquisition.real_slices` those that were not drawn. Raises
    `UserError` where the slices do not fit the volume or the checkpoint, or nothing is to be drawn.
    """
    recipe, settings = model.recipe, replace(chain or ChainSettings(), direction="down", slices=0)
    if not Grid.of(recipe.size, recipe.spacing_mm).holds(volume):
        raise _off_grid(volume, model, "resample it (see `fill_scan`)")
    count, dz = len(volume.hu), recipe.spacing_mm[0]
    real = sorted(set(range(count)) - set(missing))
    if wrong := [z for z in missing if not 0 <= z < count]:
        raise UserError(f"slice {wrong[0]}: the volume has slices 0 to {count - 1} on the working grid")
    if not missing and not complete:
        raise UserError("no slice is missing; give slices to redraw, or a direction in which to complete the head")
    if missing and not (real and real[0] < min(missing) and max(missing) < real[-1]):
        raise UserError("a slice at an end of the scan has no neighbour beyond it; omit it and complete the head")
    if above_mm < 0 or ("up" in complete and round(above_mm / dz) < 1):
        raise UserError(f"{above_mm:g} mm of the head above the scan: to complete it upward, say how much is missing")
    vertex = 0 if above_mm else first_head_slice(volume.hu)
    if early := [z for z in missing if z < vertex]:
        raise UserError(f"slice {early[0]} lies above the head, whose first slice is {vertex}")
    if isinstance(model, Pyramid):
        first = round(above_mm / dz) - vertex
        return _by_plan(model, volume, real, first, settings, seed, complete, device, progress)
    if complete:
        raise UserError("this checkpoint has no plan to say where a head ends; use a pyramid to complete heads")
    stacks = volume.hu[None].copy()
    drawn = between(model, settings, seed, [0], stacks, sorted(missing), -vertex * dz, device)
    for done, (z, slices) in enumerate(drawn, 1):
        stacks[:, z] = slices
        progress(done)
    return _mixed(volume, stacks[0], 0, real)


def _by_plan(
    model: Pyramid,
    volume: Volume,
    real: Sequence[int],
    first: int,
    settings: ChainSettings,
    seed: int,
    complete: Sequence[Arm],
    device: str,
    progress: Callable[[int], None],
) -> Volume:
    """The volume, whose first slice is number `first` below the vertex, drawn by a pyramid; what lies above the vertex
    or below the plan stays as it is."""
    deepest, last = model.levels[0].recipe.slices, first + len(volume.hu) - 1
    late = [z for z in range(len(volume.hu)) if z not in set(real) and first + z >= deepest - 1]
    if late or ("down" in complete and last >= deepest - 1):
        reach = (deepest - 1) * model.recipe.spacing_mm[0]
        raise UserError(f"the plan covers heads down to {reach:g} mm below the vertex; nothing is drawn below that")
    known = {first + z: volume.hu[z] for z in real if 0 <= first + z < deepest}
    head = draw(model, settings, seed, [0], known, complete, None, device, progress)[0]
    hu = np.concatenate([volume.hu[: max(0, -first)], head.hu, volume.hu[max(0, deepest - first) :]])
    return _mixed(volume, hu, head.known[0], real)


def _mixed(volume: Volume, hu: np.ndarray, above: int, real: Sequence[int]) -> Volume:
    """Slices of which `above` lie above the volume's first, as a Volume with the places of the real ones."""
    step = volume.positions[1] - volume.positions[0] if len(volume.hu) > 1 else np.zeros(3)
    positions = volume.positions[0] + (np.arange(len(hu)) - above)[:, None] * step
    about = replace(volume.acquisition, synthetic=True, real_slices=tuple(above + z for z in real))
    return Volume(hu, positions, volume.row_axis, volume.column_axis, volume.pixel_spacing, about)
