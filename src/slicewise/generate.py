"""Generate many volumes: batches of chains, calibrated, written as DICOM and NIfTI, resumable volume by volume."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

import slicewise
from slicewise.ascii import Calibrate, arms_of, chain, trim
from slicewise.baselines.sampling import KINDS, Baseline, draw_volume, load_baseline
from slicewise.calibrate import calibrate_chains, calibrate_slice
from slicewise.checkpoint import kind_of, load_icnet, weights_file
from slicewise.data.resample import Grid, resample_volume
from slicewise.data.store import first_head_slice
from slicewise.diffusion.denoiser import Denoiser
from slicewise.diffusion.samplers import nfe
from slicewise.errors import UserError, output_errors
from slicewise.hu import round_hu
from slicewise.io.archive import read_volume
from slicewise.io.atomic import atomic_file, write_whole
from slicewise.io.dicom_write import SyntheticOrigin, series_header, write_series
from slicewise.io.folders import RECORD
from slicewise.io.nifti import write_nifti
from slicewise.io.provenance import Provenance
from slicewise.io.tensors import sha256
from slicewise.pyramid import Head, Pyramid, draw, guided, load_generator
from slicewise.runtime import Process, core_dtype, processes, processors, threads_alone
from slicewise.sampling import ChainSettings, GenerateSettings
from slicewise.volume import Acquisition, Volume, without_real_slices
from slicewise.workers import start_worker

if TYPE_CHECKING:
    from slicewise.networks.icnet import ICNet


# Share of training windows with the lowest slice to find above which upward chains fail: with 0.8 the vault stays open.
UPWARD_SHARE = 0.7


@dataclass(frozen=True)
class Seed:
    """A volume to continue from, which of its slices, how far below the vertex that is, where the volume came from, and
    why its values may be no HU."""

    volume: Volume
    index: int
    position_mm: float
    source: Provenance
    doubt: str = ""

    @property
    def is_real(self) -> bool:
        return not self.volume.acquisition.synthetic


# Called with (volumes done, slices done of the batch in work).
Progress = Callable[[int, int], None]


def volume_name(index: int) -> str:
    return f"volume-{index:04d}"


def generate(
    checkpoint: Path,
    out: Path,
    settings: GenerateSettings,
    icnet: Path | None = None,
    progress: Progress = lambda volumes, slices: None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Generate `settings.count` volumes into `out`; volumes that already exist are kept.

    Writes dicom/<name>/ (one series a volume), nifti/<name>.nii.gz, raw/<name>.npy (int16 HU before calibration, with
    `calibrate="after"`) and generate.json (settings, checkpoint, NFE, seconds). Memory does not grow with the count:
    one batch is held at a time. Under torchrun the volumes are shared among the processes. `tell` is called with what
    the user should know of the settings.

    Returns what generate.json says. Raises `UserError` for a checkpoint or seed volume that does not fit, for an
    output folder that cannot be written or that holds volumes of other settings.
    """
    if settings.count < 1 or settings.batch < 1:
        raise UserError(
            f"GenerateSettings.count={settings.count}, GenerateSettings.batch={settings.batch}: both must be 1 or more"
        )
    with processes(settings.device) as process:
        device = str(process.device)
        model = _load(checkpoint, settings, process.device)
        if settings.calibrate == "auto":
            settings = replace(settings, calibrate="after" if isinstance(model, Denoiser) else "off")
        if settings.calibrate != "off" and icnet is None:
            raise UserError(
                "GenerateSettings.calibrate needs an IC-Net checkpoint; give icnet=FILE or "
                "GenerateSettings.calibrate=off"
            )
        net = load_icnet(icnet, device) if icnet is not None and settings.calibrate != "off" else None
        seed = None
        if not isinstance(model, Baseline) and settings.seed_volume is not None:
            seed = load_seed(settings, model)
        if process.is_main and not isinstance(model, Baseline) and settings.chain.direction != "down":
            tell(upward_doubt((model.levels[-1] if isinstance(model, Pyramid) else model).meta))
        if process.is_main and seed is not None and seed.doubt:
            tell(f"values of the seed volume do not look like HU: {seed.doubt}")
        about = describe(settings, model, checkpoint, icnet if net is not None else None)
        if process.is_main:
            _claim(out, about)
        missing = [i for i in range(settings.count) if not (out / "dicom" / volume_name(i)).is_dir()]
        mine = [missing[k] for k in process.share(len(missing))]
        process.barrier()  # all have looked before the first writes
        started, made = time.monotonic(), 0
        scan = seed.source if seed is not None and seed.is_real else None
        with _writing(process.device) as write:
            for first in range(0, len(mine), settings.batch):
                numbers = mine[first : first + settings.batch]
                if not isinstance(model, Baseline):
                    batch = _batch(model, net, settings, seed, numbers, device, made, progress)
                else:
                    batch = _drawn(model, settings, numbers)
                for number, raw, final in batch:
                    write(_write, out, number, raw, final, settings, about, scan)
                    made += 1
                    progress(made, 0)
        seconds = time.monotonic() - started
        process.barrier()
        if process.is_main:
            record = {**about, **_timing(out, made, seconds, process)}
            _write_json(out / RECORD, record)
            return record
        return about


def generate_volumes(
    model: Denoiser | Pyramid,
    count: int,
    seed: int = 0,
    *,
    icnet: "ICNet | None" = None,
    chain: ChainSettings | None = None,
    batch: int = 4,
    device: str = "cpu",
) -> Iterator[Volume]:
    """Head CT volumes in memory, one after the other; those of `slicewise generate` with the same settings.

    Parameters
    ----------
    model : what `load_denoiser` read, on `device`.
    count, seed : how many, and the key of their noise: volume i of a seed is always the same.
    icnet : calibrates every volume, where given.
    chain : how slices are sampled; none takes the usual settings.
    batch : volumes that are made together.
    """
    how: Literal["after", "off"] = "after" if icnet else "off"
    settings = GenerateSettings(count, seed, batch, chain=chain or ChainSettings(), calibrate=how, device=device)
    for first in range(0, count, batch):
        numbers = list(range(first, min(first + batch, count)))
        for _, _, final in _batch(model, icnet, settings, None, numbers, device, first, lambda volumes, slices: None):
            yield final


def _load(checkpoint: Path, settings: GenerateSettings, device: torch.device) -> Denoiser | Pyramid | Baseline:
    """The denoiser, pyramid or baseline that a checkpoint holds; `UserError` for settings that it has no use for."""
    if kind_of(checkpoint) not in KINDS:
        core = core_dtype(device, settings.core)
        model = load_generator(checkpoint, core, str(device), settings.size)
        if settings.guide is None:
            return model
        return guided(model, load_generator(settings.guide, core, str(device), settings.size), settings.chain)
    if settings.guide is not None:
        raise UserError("GenerateSettings.guide: guides denoisers, not baselines; leave it out")
    baseline = load_baseline(checkpoint, str(device))
    if settings.seed_volume is not None:
        raise UserError(f"GenerateSettings.seed_volume: a {baseline.kind} cannot continue from a slice; leave it out")
    if settings.calibrate not in ("auto", "off"):
        raise UserError(
            f"GenerateSettings.calibrate={settings.calibrate}: output of a {baseline.kind} is not calibrated; add "
            "GenerateSettings.calibrate=off"
        )
    if settings.size not in (0, baseline.recipe.size):
        raise UserError(
            f"GenerateSettings.size={settings.size}: this {baseline.kind} draws {baseline.recipe.size} pixels per "
            "side; leave it out"
        )
    baseline.check_slices(settings.chain.slices)
    if settings.chain != ChainSettings(slices=settings.chain.slices):
        raise UserError(
            f"GenerateSettings.chain: a {baseline.kind} draws without a sampler; of these settings, only slices applies"
        )
    return baseline


def describe(
    settings: GenerateSettings, model: Denoiser | Pyramid | Baseline, checkpoint: Path, icnet: Path | None
) -> dict[str, Any]:
    """What decides the voxels of a run: settings, networks, evaluations of the network a slice."""
    shown = asdict(settings)
    for name in ("count", "batch", "device"):
        shown.pop(name)
    if not isinstance(model, Baseline):
        shown["chain"]["sampler"] = settings.chain.sampler_of(model.recipe)
    shown["size"] = model.recipe.size
    shown["seed_volume"] = str(settings.seed_volume or "")
    shown["guide"] = sha256(weights_file(settings.guide)) if settings.guide else ""
    return {
        "slicewise": slicewise.__version__,
        "model": model.meta.get("name", Path(checkpoint).name),
        "model_step": model.meta.get("step"),
        "model_sha256": sha256(weights_file(checkpoint)),
        "icnet_sha256": sha256(weights_file(icnet)) if icnet is not None else None,
        "data": model.meta.get("data"),
        "settings": shown,
        "nfe_per_slice": 1 if isinstance(model, Baseline) else _evaluations(model, settings.chain),
        "spacing_mm": list(model.recipe.spacing_mm),
        **({"way": model.way} if isinstance(model, Baseline) else {}),
    }


def _evaluations(model: Denoiser | Pyramid, chain: ChainSettings) -> int:
    """Evaluations of the network with which a slice of the finest level is sampled."""
    finest = model.levels[-1] if isinstance(model, Pyramid) else model
    return nfe(chain.sampler_of(model.recipe), len(chain.sigmas(finest)))


def upward_doubt(meta: dict[str, Any]) -> str:
    """What is to be said of upward chains with a checkpoint that learnt downward ones, "" where nothing is."""
    share = meta.get("training", {}).get("task", {}).get("last_wanted", 0.0)
    if share <= UPWARD_SHARE:
        return ""
    return (
        f"upward chains are poor with this checkpoint (noisy brain, open vault): {share:.0%} of its training windows "
        "had their lowest slice as target; for upward chains, train with a lower WindowTask.last_wanted"
    )


def load_seed(settings: GenerateSettings, denoiser: Denoiser | Pyramid) -> Seed:
    """The seed volume on the checkpoint's grid, and the slice to continue from."""
    assert settings.seed_volume is not None
    recipe = denoiser.recipe
    reading = read_volume(settings.seed_volume)
    volume = reading.volume
    rows, columns = volume.hu.shape[1:]
    grid = Grid.of(recipe.size, recipe.spacing_mm)
    if not grid.holds(volume):
        if not settings.resample_seed:
            axial = np.allclose([volume.row_axis, volume.column_axis], np.eye(3)[:2], atol=1e-3)
            how = "axial" if axial and volume.is_even else "unevenly spaced" if axial else "oblique"
            raise UserError(
                f"GenerateSettings.seed_volume={settings.seed_volume}: {rows} x {columns} {how} pixels at "
                f"{_mm(volume.spacing)} mm, "
                f"the checkpoint takes {recipe.size} x {recipe.size} at {_mm(recipe.spacing_mm)} mm; "
                "add GenerateSettings.resample_seed=True"
            )
        volume = resample_volume(volume, grid)
    index = len(volume.hu) // 2 if settings.seed_slice == -1 else settings.seed_slice
    if not 0 <= index < len(volume.hu):
        raise UserError(
            f"GenerateSettings.seed_slice={index}: the seed volume has slices 0 to {len(volume.hu) - 1} on the "
            "working grid"
        )
    position = (index - first_head_slice(volume.hu)) * recipe.spacing_mm[0]
    return Seed(volume, index, position, reading.source, reading.doubt)


def _batch(
    denoiser: Denoiser | Pyramid,
    net: "ICNet | None",
    settings: GenerateSettings,
    seed: Seed | None,
    numbers: list[int],
    device: str,
    made: int,
    progress: Progress,
) -> Iterator[tuple[int, Volume | None, Volume]]:
    """(number, uncalibrated or None, final) of the volumes of one batch."""
    inside = (lambda hu, before: calibrate_slice(net, hu, before)) if net and settings.calibrate == "inside" else None
    done = lambda slices: progress(made, slices)  # noqa: E731
    if isinstance(denoiser, Pyramid):
        known = {}
        if seed is not None:
            known[round(seed.position_mm / denoiser.recipe.spacing_mm[0])] = seed.volume.hu[seed.index]
        heads = draw(denoiser, settings.chain, settings.seed, numbers, known, None, inside, device, done)
    else:
        heads = _chained(denoiser, settings, seed, numbers, inside, device, done)
    volumes = [_place(head, denoiser, seed) for head in heads]
    if net is None or settings.calibrate != "after":
        yield from ((number, None, _written(volume, seed, settings)) for number, volume in zip(numbers, volumes))
        return
    for number, volume, final in zip(numbers, volumes, _calibrated(net, volumes)):
        yield number, _written(volume, seed, settings), _written(final, seed, settings)


def _calibrated(net: "ICNet", volumes: list[Volume]) -> list[Volume]:
    """Volumes calibrated slice after slice from their vertex, or both ways from the real slice that they hold."""
    at = [(volume.acquisition.real_slices or (None,))[0] for volume in volumes]
    if at[0] is None:
        done = calibrate_chains(net, [volume.hu for volume in volumes], seeded=False)
        return [volume.with_hu(round_hu(hu)) for volume, hu in zip(volumes, done)]
    down = calibrate_chains(net, [volume.hu[z:] for volume, z in zip(volumes, at)], seeded=True)
    up = calibrate_chains(net, [volume.hu[z::-1] for volume, z in zip(volumes, at)], seeded=True)
    return [volume.with_hu(round_hu(np.concatenate([u[:0:-1], d]))) for volume, u, d in zip(volumes, up, down)]


def _chained(
    denoiser: Denoiser,
    settings: GenerateSettings,
    seed: Seed | None,
    numbers: list[int],
    inside: Calibrate | None,
    device: str,
    progress: Callable[[int], None],
) -> list[Head]:
    """The heads of one batch by a denoiser alone: a chain down, or from a seed slice one down, one up or both."""
    nothing = np.zeros((0, denoiser.recipe.size, denoiser.recipe.size), np.int16)
    made = {"down": [nothing] * len(numbers), "up": [nothing] * len(numbers)}
    for arm in arms_of(settings.chain.direction):
        own = replace(settings, chain=replace(settings.chain, direction=arm))
        start, start_mm = None, 0.0
        if seed is not None:
            # Beside the seed slice the real ones on its far side are known, too, unless they are to be generated.
            more = denoiser.recipe.slices - 2 if settings.chain.direction != "both" else 0
            window = slice(max(0, seed.index - more), seed.index + 1)
            if arm == "up":
                window = slice(seed.index, seed.index + more + 1)
            start, start_mm = seed.volume.hu[window], seed.position_mm
        made[arm] = _chains(denoiser, own, numbers, start, start_mm, inside, device, progress)
    between = nothing if seed is None else seed.volume.hu[seed.index : seed.index + 1]
    known = () if seed is None else (0,)
    return [
        Head(np.concatenate([up[::-1], between, down]), tuple(len(up) + z for z in known))
        for up, down in zip(made["up"], made["down"])
    ]


def _chains(
    denoiser: Denoiser,
    settings: GenerateSettings,
    numbers: list[int],
    start: np.ndarray | None,
    start_mm: float,
    inside: Calibrate | None,
    device: str,
    progress: Callable[[int], None],
) -> list[np.ndarray]:
    """The heads of one batch, (Z, H, W) each in the order of generation, ended where they end."""

    def begin(share: list[int]) -> Iterator[np.ndarray]:
        return chain(denoiser, settings.chain, settings.seed, share, start, start_mm, inside, device)

    shares = _shares(numbers, torch.get_num_threads() if device == "cpu" else 1)
    stacks = _side_by_side([begin(share) for share in shares], progress)
    made = [hu for stack in stacks for hu in stack]
    if settings.chain.slices:
        return made
    return [trim(hu, begun=start is not None, air_hu=denoiser.recipe.scale.air) for hu in made]


def _shares(numbers: list[int], threads: int) -> list[list[int]]:
    """A batch in even shares, one for every thread as far as they go."""
    size = -(-len(numbers) // threads)
    return [numbers[first : first + size] for first in range(0, len(numbers), size)]


def _side_by_side(chains: list[Iterator[np.ndarray]], progress: Callable[[int], None]) -> list[np.ndarray]:
    """Every chain to its end, (B, Z, H, W) each. A chain has a thread of its own where there are several: on CPUs that
    is faster than all threads at work on one convolution. They wait for one another at every slice, so that Ctrl-C is
    heard."""
    made: list[list[np.ndarray]] = [[] for _ in chains]
    with threads_alone(len(chains)) if len(chains) > 1 else nullcontext() as pool:
        while True:
            following = list((pool.map if pool else map)(lambda one: next(one, None), chains))
            if all(slices is None for slices in following):
                return [np.stack(slices, axis=1) for slices in made]
            for held, slices in zip(made, following):
                if slices is not None:
                    held.append(slices)
            progress(max(map(len, made)))


def _drawn(baseline: Baseline, settings: GenerateSettings, numbers: list[int]) -> Iterator[tuple[int, None, Volume]]:
    """(number, None, final) of volumes of a baseline."""
    for number in numbers:
        hu = draw_volume(baseline, settings.seed, number, settings.chain.slices)
        yield number, None, Volume.regular(hu, baseline.recipe.spacing_mm)


def _place(head: Head, denoiser: Denoiser | Pyramid, seed: Seed | None) -> Volume:
    """A generated head as a Volume; with a seed, its slice between what lies above it and what lies below."""
    if seed is None:
        return Volume.regular(np.ascontiguousarray(head.hu), denoiser.recipe.spacing_mm)
    real, step = seed.volume, np.array([0.0, 0.0, denoiser.recipe.spacing_mm[0]])
    (index,) = head.known
    positions = real.positions[seed.index] + (index - np.arange(len(head.hu)))[:, None] * step
    about = Acquisition(synthetic=True, real_slices=(index,))
    return Volume(head.hu, positions, real.row_axis, real.column_axis, real.pixel_spacing, about)


def _written(volume: Volume, seed: Seed | None, settings: GenerateSettings) -> Volume:
    """What of a volume is written: not the seed slice, unless that is asked for."""
    if seed is None or not settings.keep_seed:
        return without_real_slices(volume)
    return volume if seed.is_real else replace(volume, acquisition=Acquisition(synthetic=True))


@contextmanager
def _writing(device: torch.device) -> Iterator[Callable[..., None]]:
    """A function that calls another with its arguments in the background, in order: files are written while the next
    volumes are made. A GPU makes them faster than one process writes them, so there several write. What fails ends the
    run at the next call; when this ends, all is written, also after Ctrl-C.
    """
    workers = min(8, max(1, processors() - 1)) if device.type == "cuda" else 1
    pool: Executor = ThreadPoolExecutor(1)
    if workers > 1:
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
    waiting: deque[Future[None]] = deque()

    def write(function: Callable[..., None], *arguments: Any) -> None:
        waiting.append(pool.submit(function, *arguments))
        while waiting and (waiting[0].done() or len(waiting) > 4 * workers):
            waiting.popleft().result()

    with pool:
        yield write
        while waiting:
            waiting.popleft().result()


def _write(
    out: Path,
    number: int,
    raw: Volume | None,
    final: Volume,
    settings: GenerateSettings,
    about: dict[str, Any],
    scan: Provenance | None,
) -> None:
    """DICOM last: a volume counts as made when its series is there. `scan` is the real one that it continues from."""
    name = volume_name(number)
    with output_errors(out):
        if raw is not None:
            (out / "raw").mkdir(exist_ok=True)
            with atomic_file(out / "raw" / f"{name}.npy") as file:
                np.save(file, raw.hu, allow_pickle=False)
    way = about.get("way", about["settings"]["chain"]["sampler"])
    origin = SyntheticOrigin(
        model=f"{about['model']} step {about['model_step']}",
        version=slicewise.__version__,
        seed=settings.seed,
        volume=number,
        description=f"{way}, {about['nfe_per_slice']} evaluations a slice, IC-Net {settings.calibrate}",
        from_scan=scan is not None,
    )
    patient, what = f"SYN-{settings.seed}-{number:04d}", "Synthetic head CT"
    if settings.nifti:
        write_nifti(final, out / "nifti" / f"{name}.nii.gz", series_header(final, origin, patient, what))
    folder = out / "dicom" / name
    write_series(final, folder, synthetic=origin, patient_id=patient, series_description=what, source=scan)


def results(out: Path, count: int) -> Iterator[tuple[str, Volume | None, Volume]]:
    """(name, uncalibrated or None, final) of the volumes of a run, one in memory at a time."""
    for index in range(count):
        name = volume_name(index)
        raw = out / "raw" / f"{name}.npy"
        final = read_volume(out / "dicom" / name).volume
        yield name, final.with_hu(np.load(raw, allow_pickle=False)) if raw.is_file() else None, final


def _claim(out: Path, about: dict[str, Any]) -> None:
    """Make the output folder, or check that what is in it was made with the same settings."""
    path = out / RECORD
    if path.is_file():
        held = json.loads(path.read_text())
        if {k: held.get(k) for k in about} != json.loads(json.dumps(about)):
            raise UserError(f"{out}: holds volumes of another checkpoint or other settings; choose another folder")
        return
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty and not a generate run; choose another folder")
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    _write_json(path, about)


def _timing(out: Path, made: int, seconds: float, process: Process) -> dict[str, Any]:
    """Seconds and slices of this run; a run that made nothing keeps what was there."""
    path = out / RECORD
    held = json.loads(path.read_text()) if path.is_file() else {}
    if not made:
        return {k: held[k] for k in ("seconds_per_volume", "volumes", "threads") if k in held}
    return {
        "seconds_per_volume": round(seconds / made, 2),
        "volumes": len(list((out / "dicom").iterdir())),
        "threads": torch.get_num_threads() * process.world,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(value, indent=2, default=str) + "\n").encode())


def _mm(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{s:g}" for s in np.round(spacing, 2))
