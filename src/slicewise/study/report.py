"""The report of a reading study: one HTML page without outside assets, the tables as CSV, everything as JSON."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slicewise.errors import UserError
from slicewise.io.atomic import write_whole
from slicewise.reporting.pages import template
from slicewise.study.analysis import Reading, analyse, readings
from slicewise.study.create import ANSWERS, read_key, read_study
from slicewise.study.design import KINDS
from slicewise.study.store import Answers

PAGE, TABLE2, READINGS, FIGURES = "report.html", "table2.csv", "readings.csv", "report.json"


def write_report(study: Path, out: Path) -> dict[str, Any]:
    """Analyse what has been answered so far and write report.html, table2.csv, readings.csv and report.json to `out`;
    returns what report.json says.

    Raises `UserError` where `study` is none, its key is missing, nothing has been read yet, or `out` cannot be written.
    """
    about, key = read_study(study), read_key(study)
    if not (study / ANSWERS).is_file():
        raise UserError(f"{study}: no answers yet; serve the study first (slicewise study serve {study})")
    answers = Answers(study / ANSWERS)
    read = readings(about, key, answers)
    answers.close()
    if not read:
        raise UserError(f"{study}: no reader has finished a case yet; ask for the report later")
    figures = analyse(about, read)
    files = {
        FIGURES: json.dumps(figures, indent=1, allow_nan=False) + "\n",
        TABLE2: _table2_csv(figures),
        READINGS: _readings_csv(about["settings"]["structures"], read),
        PAGE: _page(figures),
    }
    for name, text in files.items():
        write_whole(out / name, text.encode())
    return figures


def _table2_csv(figures: dict[str, Any]) -> str:
    limits = ("mean", "lower", "upper")
    header = ["structure", *(f"{kind}_{name}" for kind in KINDS for name in (*limits, "ratings"))]
    header += ["difference", "difference_lower", "difference_upper", "p_non_inferior", "p_holm"]
    header += ["at_large_lower", "at_large_upper", "p_at_large"]
    rows: list[list[Any]] = [header]
    for row, test in zip(figures["table2"], figures["non_inferiority"]["structures"]):
        line = [row["structure"]]
        for kind in KINDS:
            mean = row[kind]["mean"]
            line += [mean["value"], mean["lower"], mean["upper"], row[kind]["ratings"]]
        line += [test["difference"][k] for k in ("value", "lower", "upper")]
        line += [test["p"], test["p_holm"], test["at_large"]["lower"], test["at_large"]["upper"], test["p_at_large"]]
        rows.append(["" if v is None else f"{v:.6g}" if isinstance(v, float) else v for v in line])
    return _csv(rows)


def _readings_csv(structures: Sequence[str], read: Sequence[Reading]) -> str:
    header = ["reader", "place", "case", "kind", "second_reading", *structures]
    rows: list[list[Any]] = [[*header, "guess", "confidence", "seconds", "comment"]]
    for r in read:
        ratings = ["" if math.isnan(v) else int(v) for v in r.ratings]
        # A comment that begins like a formula would be run by a spreadsheet.
        comment = f"'{r.comment}" if r.comment[:1] in ("=", "+", "-", "@", "\t", "\r") else r.comment
        shared = [r.reader, r.place, r.case, r.kind, int(r.again), *ratings]
        rows.append([*shared, r.guess, r.confidence, r.seconds, comment])
    return _csv(rows)


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _page(figures: dict[str, Any]) -> str:
    found: str = template(Path(__file__).with_name("assets") / "report.html").render(
        f=figures, kinds=KINDS, n=_number, p=_p, range=_range
    )
    return found


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _range(interval: dict[str, float | None], digits: int = 2) -> str:
    if interval["lower"] is None or interval["upper"] is None:
        return ""
    return f"{_number(interval['lower'], digits)} to {_number(interval['upper'], digits)}"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
