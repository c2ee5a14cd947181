"""HU round trip over all 4096 codes, the sigma schedules against one HU, and what half precision costs in HU.

    python bench/hu_roundtrip.py

Prints five Markdown tables: the largest error of every leg of DICOM -> Volume -> store -> x in [-1, 1] -> Volume ->
DICOM (must be 0 for each map); the last diffusion step of the paper's four sigma schedules; the error in HU of x, and
of c_skip x, computed in a narrower float, which the denoiser never does; and what it does cost to run the network core
alone in a narrower float. Ends with status 1 if a round trip is not exact.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from slicewise.data.store import open_store, put_volume
from slicewise.diffusion.precondition import c_out, c_skip, denoise
from slicewise.diffusion.schedule import PAPER_SCHEDULES, geometric, last_diffusion_step
from slicewise.hu import BRAIN, COMPANDINGS, HU_CODES, HU_MAX, HU_MIN, HUScale
from slicewise.io.dicom import read_series
from slicewise.io.dicom_write import SyntheticOrigin, write_series
from slicewise.io.nifti import read_nifti, write_nifti
from slicewise.volume import Volume

LEVELS = 1000
SIGMA_DATA = 0.5
LOWEST_SIGMA = 0.002
CORE_SIGMAS = (0.002, 0.01, 0.05, 0.5, 5.0)
Rounding = Callable[[np.ndarray], np.ndarray]


def all_codes() -> Volume:
    """Every one of the 4096 codes once in each of four slices, in another order in each."""
    codes = np.arange(HU_MIN, HU_MAX + 1, dtype=np.int16)
    rng = np.random.default_rng(0)
    hu = np.stack([rng.permutation(codes).reshape(64, 64) for _ in range(4)])
    return Volume.regular(hu, (5.0, 1.875, 1.875))


def worst(found: np.ndarray, expected: np.ndarray) -> int:
    return int(np.abs(found.astype(np.int64) - expected.astype(np.int64)).max())


def round_trip(folder: Path, companding: str) -> dict[str, int]:
    """Largest |error| in HU after each leg, each fed with what the leg before it gave."""
    origin = SyntheticOrigin(model="all codes", version="0", seed=0)
    truth, scale = all_codes(), HUScale(companding=companding)
    legs = {}

    write_series(truth, folder / "first", synthetic=origin, patient_id="CODES")
    volume = read_series(folder / "first")
    legs["DICOM → Volume"] = worst(volume.hu, truth.hu)

    put_volume(folder / "store", volume, id="codes", patient="codes", split="train")
    store = open_store(folder / "store")
    stored = store.volume(store.records[0])
    legs["→ store"] = worst(stored.hu, truth.hu)

    x = scale.encode(stored.hu)
    assert x.dtype == np.float32
    back = stored.with_hu(scale.decode_codes(x))
    legs["→ x (float32) → Volume"] = worst(back.hu, truth.hu)

    write_series(back, folder / "second", synthetic=origin, patient_id="CODES")
    legs["→ DICOM"] = worst(read_series(folder / "second").hu, truth.hu)

    write_nifti(back, folder / "back.nii.gz")
    legs["→ NIfTI"] = worst(read_nifti(folder / "back.nii.gz").hu, truth.hu)

    denoised = denoised_by_exact_core(x[None], LOWEST_SIGMA, lambda f: f)
    legs["x → D(x; σ_min), exact core → HU"] = worst(scale.decode_codes(denoised[0]), truth.hu)
    return legs


def denoised_by_exact_core(clean: np.ndarray, sigma: float, rounding: Rounding) -> np.ndarray:
    """D(x; sigma) of a network whose core F is the exact answer, rounded: (1, K, H, W) clean x to float64."""
    noisy = clean + sigma * np.random.default_rng(1).standard_normal(clean.shape)
    level = torch.full((1, clean.shape[1]), sigma, dtype=torch.float64)
    skip, out = (float(c(level[0, 0], SIGMA_DATA)) for c in (c_skip, c_out))
    core = torch.from_numpy(rounding(((clean - skip * noisy) / out).astype(np.float32)))
    return denoise(lambda x, noise, condition: core, torch.from_numpy(noisy), level, None, SIGMA_DATA).numpy()


def keep_bits(bits: int) -> Rounding:
    """float32 rounded (half to even) to `bits` explicit bits of the mantissa: TF32 keeps 10, bfloat16 7."""
    drop = 23 - bits

    def rounded(x: np.ndarray) -> np.ndarray:
        pattern = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
        odd = (pattern >> np.uint64(drop)) & np.uint64(1)
        pattern = (pattern + odd + np.uint64((1 << (drop - 1)) - 1)) >> np.uint64(drop) << np.uint64(drop)
        return pattern.astype(np.uint32).view(np.float32)

    return rounded


def through(dtype: torch.dtype) -> Rounding:
    return lambda x: torch.from_numpy(np.asarray(x, np.float32)).to(dtype).float().numpy()


ROUNDINGS: dict[str, Rounding] = {
    "float32": lambda x: x,
    "TF32 (10 bits)": keep_bits(10),
    "float16": through(torch.float16),
    "bfloat16": through(torch.bfloat16),
}


def half_precision(scale: HUScale, rounding: Rounding, factor: float = 1.0) -> tuple[float, float, float]:
    """Error in HU of x computed as rounding(factor · x)/factor: largest over all codes, and largest and mean over the
    codes of the brain window."""
    codes = np.arange(HU_MIN, HU_MAX + 1)
    x = scale.encode(codes)
    product = rounding(rounding(x) * np.float32(rounding(np.float32([factor]))[0])) if factor != 1.0 else rounding(x)
    error = np.abs(scale.decode(product.astype(np.float64) / factor) - codes)
    brain = error[(codes >= BRAIN.lo) & (codes <= BRAIN.hi)]
    return float(error.max()), float(brain.max()), float(brain.mean())


def precision_table(factor: float) -> str:
    lines = [
        "| number format | HU scale | max, all codes | max, −10 … 70 HU | mean, −10 … 70 HU |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, rounding in ROUNDINGS.items():
        for companding in COMPANDINGS:
            errors = half_precision(HUScale(companding=companding), rounding, factor)
            lines.append(f"| {name} | {companding} | {' | '.join(f'{e:.3f}' for e in errors)} |")
    return "\n".join(lines)


def core_table() -> str:
    """Largest error in HU over the codes of the brain window when only the core F is rounded."""
    codes = np.arange(HU_MIN, HU_MAX + 1)
    brain = (codes >= BRAIN.lo) & (codes <= BRAIN.hi)
    lines = [f"| core F | HU scale | {' | '.join(f'σ = {s:g}' for s in CORE_SIGMAS)} |"]
    lines.append("| --- | --- |" + " ---: |" * len(CORE_SIGMAS))
    for name, rounding in list(ROUNDINGS.items())[1:]:
        for companding in COMPANDINGS:
            scale = HUScale(companding=companding)
            x = scale.encode(codes).reshape(1, 1, 64, 64)
            errors = []
            for sigma in CORE_SIGMAS:
                hu = scale.decode(denoised_by_exact_core(x, sigma, rounding)).ravel()
                errors.append(np.abs(hu - codes)[brain].max())
            lines.append(f"| {name} | {companding} | {' | '.join(f'{e:.3f}' for e in errors)} |")
    return "\n".join(lines)


def main() -> int:
    found = {}
    for companding in COMPANDINGS:
        with tempfile.TemporaryDirectory() as folder:
            found[companding] = round_trip(Path(folder), companding)
    print(f"Largest |error| in HU over all {HU_CODES} codes, after each leg (each is fed with the result before it):\n")
    print(f"| leg | {' | '.join(COMPANDINGS)} |\n| --- |{' ---: |' * len(COMPANDINGS)}")
    for leg in found["linear"]:
        print(f"| {leg} | {' | '.join(str(found[c][leg]) for c in COMPANDINGS)} |")

    code = 2.0 / (HU_CODES - 1)
    print(f"\nLast diffusion step √(σ₁² − σ₀²) of {LEVELS} geometric scales; 1 HU of the linear scale is {code:.6f}:\n")
    print("| σ_min | σ_max | last step | in HU | below 1 HU |\n| ---: | ---: | ---: | ---: | --- |")
    for low, high in PAPER_SCHEDULES:
        step = last_diffusion_step(geometric(LEVELS, low, high))
        print(f"| {low:g} | {high:g} | {step:.6f} | {step / code:.2f} | {'yes' if step < code else 'no'} |")

    print("\nx rounded once to a narrower float, error in HU (x itself is exact in float32):\n")
    print(precision_table(1.0))
    sigma = torch.tensor(0.05, dtype=torch.float64)
    factor = float(c_skip(sigma, SIGMA_DATA))
    print(f"\nc_skip·x at σ = {float(sigma):g} (c_skip = {factor:.4f}), computed in a narrower float, error in HU:\n")
    print(precision_table(factor))
    print("\nOnly the core F in a narrower float, x path in float32 and float64: max error in HU, −10 … 70 HU:\n")
    print(core_table())
    exact = all(error == 0 for legs in found.values() for error in legs.values())
    print(f"\nTarget: 0 HU error over all 4096 codes: {'met' if exact else 'NOT MET'}.")
    return 0 if exact else 1


if __name__ == "__main__":
    raise SystemExit(main())
