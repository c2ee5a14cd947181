"""The one training loop: start or resume, step, schedule, averages, divergence, saving, stopping, logging.

A method gives it a `Trainer`: its settings, its networks, one step, a validation. Everything random in a step is a
function of (seed, step, sample), so the whole state of a run is its step, its weights and averages and its optimiser's
moments: a resumed run continues bit for bit, and many processes do what one with the whole batch would.

    RUN/config.toml           settings, as read_table reads them
    RUN/env.json              what the run ran on
    RUN/stats.jsonl           one JSON object a line
    RUN/weights.safetensors   the network to use, and weights.json
    RUN/state/                what the run resumes from
    RUN/samples/              pictures of what the network draws
"""

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slicewise.checkpoint import save_model
from slicewise.data.store import Store, open_store
from slicewise.data.windows import Heads
from slicewise.errors import UserError, output_errors
from slicewise.io.folders import MANIFEST, WEIGHTS, is_training
from slicewise.io.tensors import load_tensors, save_tensors
from slicewise.progress import counting_bar
from slicewise.runtime import Process, ending
from slicewise.settings import write_settings
from slicewise.training import ema
from slicewise.training.folder import StatsLog, alone, write_environment
from slicewise.training.settings import RunSettings
from slicewise.training.state import (
    check_same,
    identity,
    local,
    pack,
    reconstruct,
    snapshot,
    snapshots,
    state_file,
    unpack,
    whole,
)
from slicewise.training.trainer import Trainer

# Steps between looks at the loss, which a GPU has to be waited for, and at a store that may have grown.
LOG_EVERY = 20
# Seconds between them: heads may come faster than memory takes them in.
INTAKE_SECONDS = 10.0
# Snapshots of both averages in a run, from which others are made at its end.
SNAPSHOTS = 16
# Share of a run's minutes that choosing the average may take; where validations are too slow, fewer are tried.
CHOOSING = 0.1


def learning_rate(place: float, total: float, settings: RunSettings, begun: float = 0.0) -> float:
    """Share of the rate at a place in a run of `total` (steps or seconds), whose warm-up began at `begun`: linear
    warm-up, constant, linear fall to zero."""
    up = (place + 1 - begun) / max(1.0, settings.warmup * total)
    down = (total - place) / max(1.0, settings.cooldown * total)
    return max(0.0, min(1.0, up, down))


@dataclass
class Place:
    """Where a run is: steps done, seconds used, the step that the average last took in, where the warm-up began (again,
    where a finished run resumes), and how many of those seconds are kept for what comes after the last step."""

    step: int = 0
    seconds: float = 0.0
    averaged: int = 0
    begun: float = 0.0
    reserve: float = 0.0

    def now(self, settings: RunSettings) -> tuple[float, float]:
        """Where in the run, and how long it is: in seconds where minutes bound it, else in steps."""
        return (self.seconds, 60 * settings.minutes) if settings.minutes else (self.step, settings.steps)

    def share(self, settings: RunSettings) -> float:
        now, total = self.now(settings)
        return now / total


def run(trainer: Trainer, out: Path, command: str, process: Process) -> Path:
    """Train until the run's steps or minutes are done and return the weights; a started run in `out` is resumed.

    Raises `UserError` where `out` holds another run or one at work, data or settings do not fit, the disk is full, or
    the loss is not finite (the last checkpoint is kept); KeyboardInterrupt, with the state saved, after Ctrl-C or
    SIGTERM.
    """
    settings = trainer.settings
    with output_errors(out):
        (out / "state").mkdir(parents=True, exist_ok=True)
    with alone(out, process):
        place = _start(trainer, out)
        if process.is_main:
            write_settings(out / "config.toml", command, settings)
            write_environment(out)
        if place.share(settings) < 1 or not is_training(out):
            with StopRequest() as stop:
                _train(trainer, out, process, place, stop)
        _finish(trainer, out, process, place)
    return out / WEIGHTS


def _train(trainer: Trainer, out: Path, process: Process, place: Place, stop: "StopRequest") -> None:
    settings, average = trainer.settings, trainer.average
    rates = [(group, group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups]
    log = StatsLog(out, place.step, settings.tensorboard) if process.is_main else None
    seen: list[dict[str, Tensor]] = []
    began = since = time.monotonic()
    passed, saved = place.seconds - place.reserve, time.monotonic()
    # Seconds that a validation takes: the last one, and those that choose the average, are to end within the minutes.
    longest, last = 0.0, 1 + len(ema.TRIED) * (trainer.width == 0)
    manifest, looked = _written(trainer.heads.store), 0.0
    with counting_bar(process.is_main) as bar:
        task = bar.add_task(
            trainer.name, total=round(place.now(settings)[1]), completed=round(place.now(settings)[0]), note=""
        )
        while place.share(settings) < 1:
            before = place.share(settings)
            now, total = place.now(settings)
            factor = learning_rate(now, total, settings, place.begun)
            for group, rate in rates:
                group["lr"] = rate * factor
            seen.append(trainer.step(place.step))
            place.step += 1
            clock = time.monotonic()
            due = clock - saved >= 60 * settings.save_minutes
            place.reserve = min(last * longest, CHOOSING * 60 * settings.minutes)
            used = passed + clock - began + place.reserve if process.is_main else 0.0
            stopping, saving, place.seconds = process.agree(float(stop.requested), float(due), used)
            ended = place.share(settings) >= 1
            if stopping:
                ending.set()  # whichever process asked for it
            if average is not None and (ended or place.step % ema.EVERY == 0):
                average.update(trainer.networks[trainer.exported].parameters(), place.averaged, place.step)
                place.averaged = place.step
            bar.update(task, completed=round(place.now(settings)[0]))
            if place.step % LOG_EVERY == 0 or ended:
                means = _means(seen, process)
                if not all(map(math.isfinite, means.values())):
                    raise _diverged(out, place.step)
                speed = len(seen) * settings.batch / (time.monotonic() - since)
                note = f"{next(iter(means))} {next(iter(means.values())):.4g}, {speed:.1f} images/s"
                bar.update(task, note=note)
                if log:
                    about = {"lr": rates[0][1] * factor, "images_per_s": round(speed, 2), "seconds": place.seconds}
                    log.write(step=place.step, **means, **{k: float(f"{v:.5g}") for k, v in about.items()})
                seen, since = [], time.monotonic()
                if process.agree(time.monotonic() - looked if process.is_main else 0.0)[0] >= INTAKE_SECONDS:
                    manifest, looked = _take_in(trainer.heads, manifest, process), time.monotonic()
            share = place.share(settings)
            if trainer.width is not None and place.averaged and _due(before, share, SNAPSHOTS):
                snapshot(trainer, out, process, place.averaged)
            if saving or stopping or ended:
                save(trainer, out, process, place, average.averages[0] if average else None)
                saved = time.monotonic()
            if stopping and not ended:
                raise KeyboardInterrupt
            pictured, judged = _due(before, share, settings.samples), _due(before, share, settings.validations)
            if pictured or judged:
                paused = time.monotonic()
                parameters = list(trainer.networks[trainer.exported].parameters())
                with in_place_of(parameters, average.averages[0] if average else None):
                    found = trainer.validate() if judged else {}
                    if pictured:
                        trainer.sample(out / "samples" / f"{place.step:07d}.png")
                if log and judged:
                    log.write(step=place.step, **found)
                longest = max(longest, time.monotonic() - paused) if settings.minutes else 0.0
                since += time.monotonic() - paused


def _finish(trainer: Trainer, out: Path, process: Process, place: Place) -> None:
    """Choose the average to use and save it, once."""
    done = [place.step, trainer.width]
    if _weights_of(out / WEIGHTS).get("finished") == done:
        return
    chosen = None if trainer.width is None else _choose(trainer, trainer.width, out, process)
    average = chosen[1] if chosen else trainer.average.averages[0] if trainer.average else None
    with in_place_of(list(trainer.networks[trainer.exported].parameters()), average):
        trainer.finish()
    save(trainer, out, process, place, average, {"finished": done, **({"ema": chosen[0]} if chosen else {})})


def _choose(trainer: Trainer, asked: float, out: Path, process: Process) -> tuple[float, list[Tensor]] | None:
    """The average to use, and its width: of those of several widths, made from the snapshots, and the last weights as
    they are (width 0), what validates best, or the one that was asked for. None where there is nothing to choose from
    or by."""
    files = sorted(snapshots(out).glob("*.safetensors"))
    if not files or not (asked or trainer.settings.validations):
        return None
    names, parameters = zip(*trainer.networks[trainer.exported].named_parameters())
    scores: dict[float, float] = {}
    best: list[Tensor] = []
    began, most = time.monotonic(), CHOOSING * 60 * trainer.settings.minutes or math.inf
    for width in (asked,) if asked else ema.TRIED:
        if scores and process.agree(time.monotonic() - began if process.is_main else 0.0)[0] > most:
            break  # the likeliest come first
        made = reconstruct(files, width, names, parameters) if width else [p.detach().clone() for p in parameters]
        with in_place_of(parameters, made):
            scores[width] = 0.0 if asked else float(trainer.validate()["score"])
        if scores[width] == min(scores.values()):
            best, chosen = made, width
    if process.is_main and not asked:
        step = int(files[-1].stem)
        StatsLog(out, step).write(step=step, ema={str(width): score for width, score in scores.items()})
    return chosen, best


def _weights_of(path: Path) -> dict[str, Any]:
    """What the JSON beside a checkpoint says; empty where there is none."""
    try:
        return dict(json.loads(path.with_suffix(".json").read_text()))
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def in_place_of(parameters: Sequence[Tensor], others: Sequence[Tensor] | None) -> Iterator[None]:
    """Other tensors as the values of parameters, for as long as this lasts."""
    if others is None:
        yield
        return
    ema.swap(parameters, others)
    try:
        yield
    finally:
        ema.swap(parameters, others)


def save(
    trainer: Trainer,
    out: Path,
    process: Process,
    place: Place,
    average: Sequence[Tensor] | None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the network to be used, with the average as its parameters, then the state; after a crash between the two
    the resumed run comes by here again. Raises `UserError` where a step has spoilt the weights, and keeps what there
    is."""
    parameters = [p for network in trainer.networks.values() for p in network.parameters()]
    finite = all(bool(local(p).isfinite().all()) for p in parameters)
    if process.agree(float(not finite))[0]:
        raise _diverged(out, place.step)
    tensors = pack(trainer)
    network = trainer.networks[trainer.exported]
    weights = {name: tensors[f"{trainer.exported}.{name}"] for name in network.state_dict()}
    if average is not None:
        weights |= {name: whole(value) for (name, _), value in zip(network.named_parameters(), average)}
    if not process.is_main:
        return
    kind, config, meta = trainer.model()
    data = trainer.heads.store.fingerprint
    save_model(out / WEIGHTS, kind, config, weights, {**meta, "data": data, "step": place.step, **(about or {})})
    save_tensors(state_file(out), tensors, {**identity(trainer), "place": asdict(place), "memory": trainer.memory()})


def _start(trainer: Trainer, out: Path) -> Place:
    """Take over the state of a started run, or begin."""
    path = state_file(out)
    if not path.is_file():
        return Place()
    tensors, meta = load_tensors(path)
    check_same(path, meta, identity(trainer))
    unpack(path, trainer, tensors)
    trainer.remember(meta["memory"])
    place = Place(**meta["place"])
    if place.seconds and _weights_of(out / WEIGHTS).get("finished") and place.share(trainer.settings) < 1:
        place.reserve = 0.0  # it has been used
        place.begun = place.now(trainer.settings)[0]  # a finished run that is given more warms up again
    return place


def _due(before: float, now: float, count: int) -> bool:
    """Whether one of `count` events, evenly spread over a run, lies between two shares of it."""
    return math.floor(min(now, 1.0) * count + 1e-9) > math.floor(before * count + 1e-9)


def _means(seen: Sequence[Mapping[str, Tensor]], process: Process) -> dict[str, float]:
    """The mean of every scalar over the steps that have it and over all processes."""
    names = dict.fromkeys(name for one in seen for name in one)
    return {
        name: float(process.mean(torch.stack([one[name].detach().float() for one in seen if name in one]).mean()))
        for name in names
    }


def _written(store: Store) -> float:
    """When the store was last written into."""
    with contextlib.suppress(OSError):
        return (store.path / MANIFEST).stat().st_mtime
    return 0.0  # it is gone: what is in memory continues


def _take_in(heads: Heads, manifest: float, process: Process) -> float:
    """Take in heads that were written into the store meanwhile, all processes the same; returns when that was."""
    now = process.agree(_written(heads.store) if process.is_main else 0.0)[0]
    if now == manifest:
        return manifest
    store = open_store(heads.store.path)
    held = {record.id for record in heads.records}
    heads.take(store, process.tell([record.id for record in store.select(heads.split) if record.id not in held]))
    return now


def training_heads(store: Store, out: Path, process: Process) -> Heads:
    """The training split's heads: those of a started run in its order, then the others."""
    path, ids = state_file(out), []
    if path.is_file():
        ids = [name for name, _ in load_tensors(path)[1].get("heads", ())]
    ids += [record.id for record in store.select("train") if record.id not in set(ids)]
    return Heads(store, "train", process.device, process.tell(ids))


def _diverged(out: Path, step: int) -> UserError:
    return UserError(
        f"{out}: the loss is not finite at step {step}; the last good checkpoint is kept, so continue with a smaller "
        "RunSettings.lr or, for a denoiser, with DenoiserTraining.core=float32"
    )


class StopRequest:
    """Set by Ctrl-C or SIGTERM: the loop then saves and ends. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopRequest":
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
