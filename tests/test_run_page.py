"""The page that a training run leaves behind: made of what the run wrote, whole and true."""

import base64
import json
import math
import re
from pathlib import Path

import pytest

from slicewise.errors import UserError
from slicewise.training import report
from slicewise.training.report import write_run_page

LEVELS = [
    {"sigma": 0.01, "brain_rmse_hu": 3.0, "head_rmse_hu": 9.0},
    {"sigma": 1.0, "brain_rmse_hu": 8.0, "head_rmse_hu": 70.0},
]


def run_folder(folder: Path, *, validations: bool = True, samples: int = 0, **about: object) -> Path:
    """A run folder of 1,000 steps, as training writes it."""
    (folder / "samples").mkdir(parents=True)
    rows: list[dict] = [
        {"step": n, "loss": 100.0 / n, "lr": 1e-4, "images_per_s": 40.0, "seconds": 3.6 * n}
        for n in range(20, 1001, 20)
    ]
    if validations:
        rows += [
            {"step": n, "validation": LEVELS, "noise_hu": 4.1, "ema": {"0.0": 9.5, "0.1": 9.0}} for n in (500, 1000)
        ]
    (folder / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weights = {"training": {"batch": 16, "lr": 1e-4}, "recipe": {"scale": {"companding": "half"}}, "ema": 0.1, **about}
    (folder / "weights.json").write_text(json.dumps(weights))
    (folder / "env.json").write_text(json.dumps({"processes": 2, "threads": 1, "cpu_capability": "AVX512"}))
    for n in range(samples):
        (folder / "samples" / f"{100 * (n + 1):06d}.png").write_bytes(f"picture {n}".encode())
    return folder


def facts(html: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html))


def test_page_says_what_the_run_did(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    assert write_run_page(run) == run / "report.html"
    html = (run / "report.html").read_text()
    assert facts(html) == {
        "Steps": "1,000", "Images seen": "16,000", "Time": "1:00:00", "Loss": "0.1", "Ran on": "2 x 1 threads, AVX512",
    }  # fmt: skip
    assert html.count("<svg") == 5, "loss, error by noise level, learning rate, images per second, averages"
    assert "noise of 4.1 HU" in html
    assert "Saved: 0.1" in html
    assert "<td>batch</td><td>16</td>" in html
    assert "What the network draws" not in html


def test_page_of_a_run_without_validation(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", validations=False)
    html = write_run_page(run).read_text()
    assert html.count("<svg") == 3
    assert "noise level" not in html


@pytest.mark.parametrize(("samples", "shown"), [(1, [0]), (4, [0, 1, 2, 3]), (11, [0, 2, 4, 6, 8, 10]), (6, range(6))])
def test_pictures_are_spread_over_the_run_the_last_among_them(tmp_path: Path, samples: int, shown: list[int]) -> None:
    html = write_run_page(run_folder(tmp_path / "run", samples=samples)).read_text()
    pictures = [base64.b64decode(data).decode() for data in re.findall(r"image/png;base64,([^\"]+)", html)]
    assert pictures == [f"picture {n}" for n in shown]
    assert [f"step {100 * (n + 1):,}" for n in shown] == re.findall(r"<h3>(.*?)</h3>", html)


def test_loss_is_smoothed_over_a_twentieth_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    make = report.figure_axes

    def watched(*args, **kwargs):
        figure, axes = make(*args, **kwargs)
        drawn.append(axes)
        return figure, axes

    monkeypatch.setattr(report, "figure_axes", watched)
    run = run_folder(tmp_path / "run")
    write_run_page(run)
    raw, smooth = (line.get_ydata() for line in drawn[0].lines)
    assert list(raw) == [100.0 / n for n in range(20, 1001, 20)]
    assert smooth[0] == raw[0]
    assert smooth[10] == pytest.approx(sum(raw[8:11]) / 3)
    # The floor of the brain: what is left of its noise where x is known as well as sigma says.
    floor = next(line for line in drawn[1].lines if line.get_label() == "floor of the brain")
    slope = report._brain_slope({"recipe": {"scale": {"companding": "half"}}})
    expected = [1 / math.sqrt((slope / sigma) ** 2 + 1 / 4.1**2) for sigma in (0.01, 1.0)]
    assert list(floor.get_ydata()) == pytest.approx(expected)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training run here"):
        write_run_page(tmp_path)
    run = run_folder(tmp_path / "run")
    (run / "stats.jsonl").write_text('{"step": 20, "validation": []}\n{"step"')
    with pytest.raises(UserError, match="no training run here"):
        write_run_page(run)
