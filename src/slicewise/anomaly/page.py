"""The page on what was found in a scan: one HTML file without outside assets."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slicewise.anomaly.run import Anomalies
from slicewise.hu import BRAIN
from slicewise.reporting.montage import png
from slicewise.reporting.pages import template

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Slices that are pictured: those with the highest scores.
PICTURED = 6
RESIDUAL_HU = 40.0
MOST_Z = 8.0


def page(found: Anomalies, told: dict[str, Any]) -> str:
    """The page; `told` is what `run.summary` gave."""
    picture = base64.b64encode(png(picture_of(found))).decode()
    rows = [
        [
            str(r["number"]),
            "denser" if r["denser"] else "less dense",
            f"{r['cm3']:.1f}",
            f"{r['residual_hu']:+.0f}",
            f"{r['peak_z']:+.1f}",
            f"{r['slices'][0]} – {r['slices'][1]}",
            ", ".join(f"{v:.0f}" for v in r["lps_mm"]),
        ]
        for r in told["regions"]
    ]
    scored = sorted((s for s in told["slices"] if s["score"] is not None), key=lambda s: -s["score"])
    slices = [[str(s["slice"]), f"{s['score']:.2f}", f"{s['p']:.3f}"] for s in scored[:10]]
    headline = [
        ("score of the head", "none" if told["score"] is None else f"{told['score']:.2f}"),
        ("empirical p", "none" if told["p"] is None else f"{told['p']:.3f}"),
        ("regions", str(len(rows))),
        ("draws", str(told["settings"]["draws"])),
    ]
    facts = [(str(k), str(v)) for k, v in {**told, **told["settings"]}.items() if not isinstance(v, list | dict)]
    made: str = template(Path(__file__).with_suffix(".html")).render(
        headline=headline, picture=picture, regions=rows, slices=slices, facts=facts, use=told["use"]
    )
    return made


def picture_of(found: Anomalies, count: int = PICTURED) -> "Figure":
    """The slices with the highest scores: the scan, what it would look like if it were normal, the residual, z-scores
    and regions. The patient's right is at image left."""
    from matplotlib.figure import Figure

    scores = np.nan_to_num(found.slice_scores, nan=-1.0)
    chosen = sorted(np.argsort(-scores)[:count].tolist())
    figure = Figure(figsize=(2.1 * 4, 2.1 * len(chosen) + 0.3), dpi=110, facecolor="black", layout="constrained")
    panels = figure.subplots(len(chosen), 4, squeeze=False)
    titles = ("scan", "if it were normal", f"residual ±{RESIDUAL_HU:g} HU", f"z ±{MOST_Z:g}")
    for row, z in zip(panels, chosen):
        shown = (found.volume.hu[z], found.pseudo_normal.hu[z], found.residual[z], found.z[z])
        for axes, image, title, limit in zip(row, shown, titles, (None, None, RESIDUAL_HU, MOST_Z)):
            if limit is None:
                axes.imshow(image, cmap="gray", vmin=BRAIN.lo, vmax=BRAIN.hi)
            else:
                inside = np.where(found.tissue[z] > 0, image, 0)
                axes.imshow(inside, cmap="RdBu_r", vmin=-limit, vmax=limit)
            if title == "scan" and found.regions_map[z].any():
                axes.contour(found.regions_map[z] > 0, levels=[0.5], colors="#ffb000", linewidths=0.8)
            if z == chosen[0]:
                axes.set_title(title, color="#e8e8e8", fontsize=8)
            axes.set_axis_off()
        row[0].text(2, 8, f"{z}", color="#9a9a9a", fontsize=7)
    return figure
