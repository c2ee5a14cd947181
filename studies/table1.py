"""Table 1 and Figure 4: ASCII(2) and ASCII(3), each with and without IC-Net, against the slice-to-3D VAE.

    python studies/table1.py [--quick]

All on the whole range with the paper's schedule (σ 0.001 – 1348), trained on the same number of slices; ASCII(2) is
Figure 1's, IC-Net Figure 3's. `slicewise evaluate` compares the volumes with heads that no model has seen, in the whole
range and in the brain window. The paper's data are private and its extractor another: what can be set beside it is each
number's ratio to ASCII(2) + IC-Net's. Writes table1.md and .json, and fig4.png.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fig3 import SCHEDULE
from fig5 import icnet
from steps import (
    Study,
    arguments,
    command,
    drawn,
    held_out,
    held_out_split,
    markdown,
    paper_denoiser,
    paper_sampler,
    schedule_run,
    steps_for,
    table,
    trained,
    write_results,
)

from slicewise.calibrate import calibrate_volume
from slicewise.checkpoint import load_icnet
from slicewise.data.store import put_volume
from slicewise.evaluation.evaluate import evaluate
from slicewise.evaluation.result import Evaluation
from slicewise.evaluation.settings import EvaluateSettings
from slicewise.generate import volume_name
from slicewise.hu import BRAIN, WHOLE
from slicewise.metrics.compare import window_text
from slicewise.reporting.montage import save_montage
from slicewise.sampling import ChainSettings
from slicewise.settings import fill
from slicewise.training.settings import SliceVAETraining
from slicewise.volume import Volume

METRICS = ("FID-Ax", "FID-Cor", "FID-Sag", "MS-SSIM", "bMMD²")
WINDOWS = {"whole": WHOLE, "window": BRAIN}
FLOOR = "real against real"
# Table 1 of the paper, metrics in the order of METRICS.
PAPER = {
    "whole": {
        "ASCII(2) + IC-Net": (14.993, 19.188, 19.698, 0.6271, 425704.0),
        "ASCII(2)": (15.250, 19.158, 19.631, 0.6275, 429120.0),
        "ASCII(3) + IC-Net": (16.599, 20.930, 21.991, 0.6407, 428045.0),
        "ASCII(3)": (18.127, 21.224, 22.311, 0.6406, 432665.0),
        "slice VAE": (29.137, 28.263, 29.024, 0.9058, 311080.0),
    },
    "window": {
        "ASCII(2) + IC-Net": (14.656, 18.920, 18.569, 0.5287, 1975336.0),
        "ASCII(2)": (15.770, 19.830, 19.675, 0.5384, 1854921.0),
        "ASCII(3) + IC-Net": (15.232, 19.996, 19.840, 0.5480, 2044218.0),
        "ASCII(3)": (20.145, 24.230, 24.511, 0.5447, 1858850.0),
        "slice VAE": (28.682, 28.828, 29.912, 0.8609, 1894911.0),
    },
}
FIRST = "ASCII(2) + IC-Net"


def slice_vae(study: Study) -> SliceVAETraining:
    """The size's slice VAE with the study's budget."""
    base = fill(SliceVAETraining(), table("train-slice-vae", study.budget.size), "preset")
    # Published and in the presets, the latent is 2 x 2 pixels; smaller slices take fewer halvings.
    shape = replace(base.network, channels=base.network.channels[: int(math.log2(study.budget.size)) - 1])
    steps = steps_for(study.budget.images, base.batch)
    return replace(base, network=shape, steps=steps, seed=study.seed, device=study.device)


def written(study: Study, name: str, volumes: Sequence[Volume]) -> Path:
    """Volumes as a store, which `evaluate` reads; one of an earlier call gives way to it."""
    folder = study.work / f"{name}-set"
    shutil.rmtree(folder, ignore_errors=True)
    for number, volume in enumerate(volumes):
        one = volume_name(number)
        put_volume(folder, volume, id=one, patient=one, split="test", source=name)
    return folder


def sets_of(study: Study) -> dict[str, tuple[Path, list[Volume]]]:
    """Folder and volumes of every column of the paper's table."""
    net = load_icnet(icnet(study, "paper"))
    found = {}
    for slices in (2, 3):
        name = schedule_run(SCHEDULE) + ("" if slices == 2 else f"-k{slices}")
        run = trained(study, name, paper_denoiser(study, *SCHEDULE, slices=slices))
        raw = list(drawn(study, name, run, paper_sampler(study)))
        calibrated = [calibrate_volume(net, v) for v in raw]
        found[f"ASCII({slices}) + IC-Net"] = written(study, f"{name}-icnet", calibrated), calibrated
        found[f"ASCII({slices})"] = written(study, name, raw), raw
    run = trained(study, "slice-vae", slice_vae(study))
    volumes = list(drawn(study, "slice-vae", run, ChainSettings()))
    found["slice VAE"] = written(study, "slice-vae", volumes), volumes
    return found


def numbers(found: Evaluation) -> tuple[dict[str, float], dict[str, float]]:
    """(of the synthetic set, of real against real) by "window, metric"; a Fréchet floor is that of two halves."""
    synth, floor = {}, {}
    for title, window in WINDOWS.items():
        text = window_text(window)
        for row in found.distances:
            short = "bMMD²" if row.name.startswith("bMMD²") and row.name.endswith(", biased") else row.name
            if row.window == text and row.slices in ("middle", "") and short in METRICS:
                synth[f"{title}, {short}"], floor[f"{title}, {short}"] = row.estimate.value, row.estimate.floor
        for pairs in found.measurements:
            if pairs.name == f"MS-SSIM of pairs, {text}":
                synth[f"{title}, MS-SSIM"], floor[f"{title}, MS-SSIM"] = pairs.synth_mean, pairs.real_mean
    order = [f"{title}, {metric}" for title in WINDOWS for metric in METRICS]
    nothing = float("nan")
    return {k: synth.get(k, nothing) for k in order}, {k: floor.get(k, nothing) for k in order}


def ratios(rows: dict[str, dict[str, float]]) -> str:
    """Every number over ASCII(2) + IC-Net's, ours and the paper's, as a Markdown table."""
    beside = {}
    for title in WINDOWS:
        for place, metric in enumerate(METRICS):
            cells = {}
            for column, values in PAPER[title].items():
                if column != FIRST:
                    key = f"{title}, {metric}"
                    cells[f"{column}, ours"] = rows[column][key] / rows[FIRST][key]
                    cells[f"{column}, paper"] = values[place] / PAPER[title][FIRST][place]
            beside[f"{title}, {metric}"] = cells
    return f"Ratios to {FIRST}, ours and the paper's:\n\n{markdown(beside)}"


def main(argv: Sequence[str] | None = None) -> None:
    study = arguments("table1", __doc__, argv, shared="fig1")
    split = held_out_split(study.store)
    settings = EvaluateSettings(all_slices=False, seed=study.seed)
    rows, sets = {}, sets_of(study)
    for title, (folder, _) in sets.items():
        found = evaluate(
            study.store.path, folder, settings, splits=(split, "all", "all"), cache=study.work / "features"
        )
        rows[title], floor = numbers(found)
    rows[FLOOR] = floor
    pictured = {"held-out head": held_out(study)[0], **{title: volumes[0] for title, (_, volumes) in sets.items()}}
    save_montage(list(pictured.values()), study.out / "fig4.png", list(pictured))
    caption = (
        f"**Table 1.** {study.budget.volumes} volumes of each against {len(study.store.select(split))} heads of the "
        f"{split} split; σ {SCHEDULE[0]:g} – {SCHEDULE[1]:g}, {study.budget.levels} levels, whole range; features: "
        f"{found.extractor}. Last row: Fréchet distance and bMMD² of the real set's halves, MS-SSIM of its pairs."
    )
    write_results(study, rows, caption, ratios(rows))


if __name__ == "__main__":
    command(main)
