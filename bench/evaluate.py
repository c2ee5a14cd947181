"""`slicewise evaluate` measured: time and memory on two sets of volumes; agreement and speed beside other libraries.

    python bench/evaluate.py [--count 50] [--store STORE] [--work runs/bench-evaluate] [--threads N]

Without --store, 2 x COUNT head phantoms of 128 x 128 are made first (kept in WORK). Prints Markdown. The first
evaluation computes everything, the second reads what the first kept. Needs the `bench` extra (MONAI, scikit-image).
"""

import argparse
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import MMDMetric
from monai.metrics.fid import get_fid_score
from monai.metrics.regression import compute_ms_ssim
from scipy import linalg
from scipy.stats import wasserstein_distance
from skimage.metrics import structural_similarity

from slicewise.data.phantom import PhantomSettings, store_phantoms
from slicewise.data.store import Store, open_store, put_volume
from slicewise.metrics.distribution import histogram_distance
from slicewise.metrics.frechet import Moments, frechet_distance
from slicewise.metrics.kernel import batch_mmd2
from slicewise.metrics.structure import ms_ssim


def two_sets(store: Store, count: int, work: Path) -> tuple[Path, Path]:
    """The first 2 x count volumes of a store as two stores."""
    if len(store.records) < 2 * count:
        raise SystemExit(f"{store.path}: {len(store.records)} volumes, 2 x {count} are needed")
    paths = work / "real", work / "synth"
    for path, records in zip(paths, (store.records[:count], store.records[count : 2 * count])):
        shutil.rmtree(path, ignore_errors=True)
        for r in records:
            put_volume(path, store.volume(r), id=r.id, patient=r.patient, split="train")
    return paths


def run(real: Path, synth: Path, out: Path, threads: int) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak memory (MB) of the command."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "slicewise", "evaluate", str(real), str(synth), "--out", str(out)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, busy, after.ru_maxrss / 1024


def timed(function: Callable[[], Any], least: float = 0.5) -> tuple[Any, float]:
    """Result and seconds a call, over as many calls as take half a second."""
    result, calls, started = None, 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - started < least:
        result, calls = function(), calls + 1
    return result, (time.perf_counter() - started) / calls


def by_sqrtm(m1: np.ndarray, c1: np.ndarray, m2: np.ndarray, c2: np.ndarray) -> float:
    return float(((m1 - m2) ** 2).sum() + np.trace(c1 + c2) - 2 * np.trace(np.real(linalg.sqrtm(c1 @ c2))))


def comparisons(features: int, side: int) -> list[list[str]]:
    """Rows: quantity, library, our value, theirs, relative difference, our and their milliseconds."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((features, features)) / math.sqrt(features)
    a, b = (
        rng.standard_normal((2 * features, features)) @ mix,
        1.1 * rng.standard_normal((2 * features, features)) @ mix,
    )
    moments = [Moments(features), Moments(features)]
    for one, rows in zip(moments, (a, b)):
        one.add(rows)
    parts = [part for m in moments for part in (m.mean, m.covariance)]
    rows = []

    def compare(what: str, library: str, ours: Callable[[], float], theirs: Callable[[], Any]) -> None:
        (value, fast), (other, slow) = timed(ours), timed(theirs)
        gap = abs(value - float(other)) / max(abs(float(other)), 1e-300)
        numbers = [f"{value:.8g}", f"{float(other):.8g}", f"{gap:.1e}", f"{1e3 * fast:.2f}", f"{1e3 * slow:.2f}"]
        rows.append([what, library, *numbers, f"{slow / fast:.1f} ×"])

    distance = f"Fréchet distance, {features} features"
    compare(distance, "SciPy `sqrtm`", lambda: frechet_distance(*parts), lambda: by_sqrtm(*parts))
    tensors = [torch.from_numpy(v) for v in (a, b)]

    def ours_from_features() -> float:
        fresh = [Moments(features), Moments(features)]
        for one, rows_of in zip(fresh, (a, b)):
            one.add(rows_of)
        return frechet_distance(*(part for m in fresh for part in (m.mean, m.covariance)))

    compare(f"{distance}, from vectors", "MONAI", ours_from_features, lambda: get_fid_score(*tensors))
    x, y = rng.uniform(-1, 1, (2, 4, side, side, side)).astype(np.float32)
    doubles = [torch.from_numpy(v.astype(np.float64))[:, None] for v in (x, y)]
    compare(f"unbiased MMD², 4 x {side}³", "MONAI", lambda: batch_mmd2(x, y)[1], lambda: MMDMetric()(*doubles))
    x, y = (v[0].astype(np.float64) for v in (x, y))
    for axis in range(3):  # neighbouring voxels alike, as in pictures
        x = (x + np.roll(x, 1, axis) + np.roll(x, 2, axis)) / 3
    y = np.clip(x + 0.1 * y, -1, 1)
    singles = [torch.from_numpy(v.astype(np.float32))[None, None] for v in (x, y)]
    weights, window = (0.3, 0.3, 0.4), 7
    compare(
        f"MS-SSIM of {side}³, 3 scales, window 7", "MONAI", lambda: ms_ssim(x, y, 2.0, weights, window),
        lambda: compute_ms_ssim(*singles, 3, 2.0, kernel_size=window, weights=weights),
    )  # fmt: skip
    inner = slice(5, -5)
    options: dict[str, Any] = {"data_range": 2.0, "gaussian_weights": True, "sigma": 1.5, "full": True}
    options["use_sample_covariance"] = False
    compare(
        f"SSIM of {side}³", "scikit-image", lambda: ms_ssim(x, y, 2.0, weights=(1.0,)),
        lambda: structural_similarity(x, y, **options)[1][inner, inner, inner].mean(),
    )  # fmt: skip
    edges = np.arange(-30.5, 91.0)
    middles, (p, q) = (edges[1:] + edges[:-1]) / 2, rng.random((2, 121))
    compare(
        "Wasserstein distance of histograms", "SciPy", lambda: histogram_distance(p, q, edges),
        lambda: wasserstein_distance(middles, middles, p, q),
    )  # fmt: skip
    return rows


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="volumes of either set")
    parser.add_argument("--store", type=Path, help="prepared store to take them from")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-evaluate"), help="folder for what is made")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of the evaluation")
    parser.add_argument("--features", type=int, default=1280, help="numbers in a vector of the Fréchet comparison")
    parser.add_argument("--side", type=int, default=96, help="side of the volumes of the other comparisons")
    parser.add_argument("--only", choices=("time", "agreement"), help="one of the two parts")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}\n"
    )
    if options.only != "agreement":
        if options.store:
            store = open_store(options.store)
        else:
            heads = options.work / "phantoms"
            store = store_phantoms(heads, 2 * options.count, 0, PhantomSettings(size=128), os.cpu_count() or 1)
        real, synth = two_sets(store, options.count, options.work)
        out = options.work / "evaluation"
        shutil.rmtree(out, ignore_errors=True)
        rows = []
        for name in ("computed", "from the cache"):
            wall, busy, peak = run(real, synth, out, options.threads)
            rows.append([name, f"{wall:.0f}", f"{busy:.0f}", f"{peak:.0f}"])
        shape = " x ".join(map(str, store.records[0].shape))
        print(f"`slicewise evaluate`, 2 x {options.count} volumes of {shape}, {options.threads} threads\n")
        print(table(["", "seconds", "processor seconds", "peak memory, MB"], rows), "\n")
    if options.only != "time":
        torch.set_num_threads(options.threads)
        head = ["", "against", "ours", "theirs", "relative difference", "ours, ms", "theirs, ms", "faster"]
        print(table(head, comparisons(options.features, options.side)))


if __name__ == "__main__":
    main()
