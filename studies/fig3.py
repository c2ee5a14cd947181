"""Figure 3: generated volumes as they come, after histogram matching, and after IC-Net.

    python studies/fig3.py [--quick] [--checkpoint release]

Takes Figure 1's ASCII(2) with the paper's schedule (σ 0.001 – 1348, whole range) and IC-Net with the paper's recipe,
both trained on the same number of slices; with --checkpoint, that in place of the ASCII(2), as it is trained and as
`slicewise generate` draws from it. Histograms are matched to the seed slice, the first with soft tissue, and to the
predecessor. Writes fig3.png (three planes of one volume), fig3.md and fig3.json.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from fig5 import icnet
from steps import arguments, command, drawn, drawn_schedule, held_out, write_results

from slicewise.calibrate import calibrate_volume, match_volume
from slicewise.checkpoint import load_denoiser, load_icnet
from slicewise.hu import ICNET
from slicewise.metrics.continuity import drift_slope
from slicewise.metrics.reference import VolumeStats, measure
from slicewise.reporting.montage import save_montage
from slicewise.volume import Volume

SCHEDULE = (0.001, 1348.0)
# Chains of matching start at the first slice with this share of soft tissue: matching to air gives air.
START_SHARE = 0.1


def seed_slice(volume: Volume) -> int:
    """The first slice with soft tissue, or the first."""
    share = ((volume.hu > ICNET.lo) & (volume.hu < ICNET.hi)).mean(axis=(1, 2))
    return int(np.argmax(share >= START_SHARE))


def row(stats: list[VolumeStats]) -> dict[str, float]:
    """Brain over the volumes: mean, spread between volumes, step between slices, drift; HU."""
    means = np.array([s.scalars["brain"] for s in stats])
    steps = np.concatenate([s.steps for s in stats])
    # As if slices were a centimetre apart: HU a slice.
    slopes = np.abs([drift_slope(s.profile, 10.0) for s in stats])
    slopes = slopes[np.isfinite(slopes)]
    found = means[np.isfinite(means)]
    nothing = float("nan")
    return {
        "volumes with brain": len(found),
        "brain mean, HU": float(found.mean()) if len(found) else nothing,
        "spread between volumes, HU": float(found.std()) if len(found) else nothing,
        "step between slices, HU": float(steps.mean()) if len(steps) else nothing,
        "drift, HU a slice": float(np.mean(slopes)) if len(slopes) else nothing,
    }


def main(argv: Sequence[str] | None = None) -> None:
    study = arguments("fig3", __doc__, argv, shared="fig1", given_model=True)
    if study.checkpoint:
        study = replace(study, work=study.work.with_name("fig3"))  # its IC-Net is of another size
        raw = list(drawn(study, "checkpoint", study.checkpoint))
        source = f"the checkpoint {load_denoiser(study.checkpoint).meta.get('name', study.checkpoint.name)}"
    else:
        raw = drawn_schedule(study, SCHEDULE)
        source = f"ASCII(2) (σ {SCHEDULE[0]:g} – {SCHEDULE[1]:g}, {study.budget.levels} levels, whole range)"
    net = load_icnet(icnet(study, "paper"))
    sets = {
        "as generated": raw,
        "matched to the seed slice": [match_volume(v, "seed", seed_slice(v)) for v in raw],
        "matched to the predecessor": [match_volume(v, "previous", seed_slice(v)) for v in raw],
        "IC-Net": [calibrate_volume(net, v) for v in raw],
    }
    rows = {
        title: row([measure(v) for v in volumes])
        for title, volumes in {"held-out heads": held_out(study), **sets}.items()
    }
    save_montage([volumes[0] for volumes in sets.values()], study.out / "fig3.png", list(sets))
    write_results(study, rows, f"**Figure 3.** {len(raw)} volumes of {source} before and after calibration.")


if __name__ == "__main__":
    command(main)
