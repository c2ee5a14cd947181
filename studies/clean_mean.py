"""Is "σmin = 0.01 is noisy, 0.001 is clean" a property of the schedule, or of noise that a sampler leaves in?

    python studies/clean_mean.py [--quick]

Widely copied inpainting code takes the mean of an already re-noised x for its result, so that noise of standard
deviation σmin stays in it: 20.5 HU at σmin = 0.01 in the whole range, 2.0 HU at 0.001. Two by two: σmin × the sampler
that keeps the clean mean ("pc") and the one that does not ("pc_noisy"), on the two networks of Figure 1, with the same
seeds. Writes clean_mean.png, .md and .json.
"""

from collections.abc import Sequence

import numpy as np
from fig1 import REFERENCE, figure, row, usable
from steps import arguments, command, drawn, paper_denoiser, paper_sampler, schedule_run, trained, write_results

from slicewise.errors import UserError
from slicewise.hu import HU_CODES
from slicewise.metrics.tissue import parenchyma_cv
from slicewise.reporting.montage import save_figure

SIGMA_MAX = 1348.0
SAMPLERS = {"pc": "clean mean", "pc_noisy": "noise kept"}


def main(argv: Sequence[str] | None = None) -> None:
    study = arguments("clean_mean", __doc__, argv, shared="fig1")
    held = study.store
    slices = {REFERENCE: usable(np.asarray(held.hu(r)) for r in held.select("train"))}
    kept = {REFERENCE: 0.0}
    for low in (0.01, 0.001):
        name = schedule_run((low, SIGMA_MAX))
        run = trained(study, name, paper_denoiser(study, low, SIGMA_MAX))
        for sampler, what in SAMPLERS.items():
            # The clean ones are Figure 1's own volumes.
            volumes = name if sampler == "pc" else f"{name}-{sampler}"
            title = f"σmin {low:g}, {what}"
            slices[title] = usable(v.hu for v in drawn(study, volumes, run, paper_sampler(study, sampler)))
            kept[title] = low * (HU_CODES - 1) / 2 if sampler == "pc_noisy" else 0.0
    reference = np.array([parenchyma_cv(s) for s in slices[REFERENCE]])
    if not len(reference):
        raise UserError(f"{held.path}: no training slice shows parenchyma; give a store of heads")
    rows = {name: {"noise left in, HU": kept[name], **row(s, reference)} for name, s in slices.items()}
    save_figure(figure(slices), study.out / "clean_mean.png")
    caption = (
        "**σmin or the sampler?** CV in the parenchyma of single slices, for two σmin and two samplers that differ in "
        f"their last line alone; ASCII(2), σmax {SIGMA_MAX:g}, {study.budget.levels} levels."
    )
    write_results(study, rows, caption)


if __name__ == "__main__":
    command(main)
