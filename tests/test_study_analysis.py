"""Analysis of a reading study: simulated readers of known behaviour come back out of the statistics."""

import json
import math
from typing import Any

import numpy as np
import pytest

from slicewise.study.analysis import Reading, analyse

ABOUT = {
    "version": "0",
    "settings": {
        "title": "Simulated",
        "structures": ["Skull", "Ventricles", "Basilar artery"],
        "anchors": ["discontinuous", "strained", "well preserved"],
        "margin": 0.25,
        "kappa": "linear",
    },
    "grid": {"pixel_mm": 1.9, "slice_mm": 5.0, "size": 128, "slices": 28},
}
# Chances of 1, 2, 3 by structure and kind: as good, slightly worse, far worse (the paper's basilar artery).
TRUTH = {
    "real": [(0.0, 0.0, 1.0), (0.02, 0.06, 0.92), (0.02, 0.04, 0.94)],
    "synthetic": [(0.0, 0.0, 1.0), (0.02, 0.08, 0.90), (0.70, 0.22, 0.08)],
}
COPY = 0.6  # how often a reader sees what the case shows; else chance of the same shares


def simulate(cases: int, readers: int = 3, seed: int = 0) -> tuple[dict[str, Any], list[Reading]]:
    """Readers with known behaviour: ratings of known shares and agreement, guesses right in 70 %, 40 s a case."""
    rng = np.random.default_rng(seed)
    plan: dict[str, Any] = {}
    read = []
    shown = {(kind, c): [rng.choice([1.0, 2.0, 3.0], p=p) for p in TRUTH[kind]] for kind in TRUTH for c in range(cases)}
    for number in range(readers):
        name, place = f"Reader {number + 1}", 0
        for again in (False, True):
            for (kind, c), truth in shown.items():
                if again and c >= cases // 2:
                    continue
                ratings = tuple(
                    float(t if rng.random() < math.sqrt(COPY) else rng.choice([1.0, 2.0, 3.0], p=p))
                    for t, p in zip(truth, TRUTH[kind])
                )
                guess = kind if rng.random() < 0.7 else {"real": "synthetic", "synthetic": "real"}[kind]
                seconds = round(float(rng.lognormal(math.log(40), 0.3)), 1)
                confidence = int(rng.integers(1, 4))
                read.append(Reading(name, place, f"{kind}{c}", kind, again, ratings, guess, confidence, seconds, ""))
                place += 1
        plan[name] = {"cases": [r.case for r in read if r.reader == name], "practice": []}
    return {**ABOUT, "readers": plan}, read


def test_simulated_readers_come_back_out_of_the_statistics():
    about, read = simulate(400)
    got = analyse(about, read)
    assert got["complete"]
    assert got["cases"] == {"real": 400, "synthetic": 400}
    for i, row in enumerate(got["table2"]):
        for kind in TRUTH:
            truth = float(np.dot(TRUTH[kind][i], [1, 2, 3]))
            mean = row[kind]["mean"]
            assert mean["value"] == pytest.approx(truth, abs=0.06), row["structure"]
            assert mean["lower"] <= mean["value"] <= mean["upper"]
            assert mean["upper"] - mean["lower"] < 0.16
            assert sum(row[kind]["scores"].values()) == row[kind]["ratings"] == 1200
    tests = got["non_inferiority"]["structures"]
    assert [t["shown"] for t in tests] == [True, True, False]
    assert not got["non_inferiority"]["all_shown"]
    assert tests[2]["difference"]["value"] == pytest.approx(1.38 - 2.92, abs=0.08)
    assert tests[2]["p"] > 0.99
    # Two readers see the same with probability COPY and else agree by chance: within one kind kappa is COPY; a
    # structure that differs between kinds gains what the kind explains.
    between, within = got["agreement"]["between"], got["agreement"]["within"]
    assert between[2]["structure"] == "Ventricles"
    assert between[2]["kappa"]["value"] == pytest.approx(COPY, abs=0.12)
    kappa = within[2]["kappa"]
    assert kappa["value"] == pytest.approx(COPY, abs=0.1)
    assert kappa["lower"] < kappa["value"] < kappa["upper"]
    assert between[1]["kappa"]["value"] is None, "all 3: no kappa"
    assert between[1]["same"] == 1.0, "all 3: no kappa"
    assert between[3]["kappa"]["value"] > COPY
    assert between[0]["pairs"] == 3 * 800 * 3
    assert within[0]["pairs"] == 3 * 400 * 3
    for r in got["guess"]["readers"]:
        assert r["accuracy"]["value"] == pytest.approx(0.7, abs=0.05)
        assert r["p_chance"] < 1e-6
        assert r["auc"]["value"] == pytest.approx(_area(), abs=0.05)
        assert r["roc"][0] == [0.0, 0.0]
        assert r["roc"][-1] == [1.0, 1.0]
    assert got["guess"]["auc"]["lower"] < _area() < got["guess"]["auc"]["upper"]
    assert got["times"][-1]["real"]["median"] == pytest.approx(40, abs=2)
    assert got["times"][-1]["real"]["cases"] == 1200


def _area() -> float:
    """Area under the ROC when 70 % of guesses are right and confidence 1, 2, 3 is drawn at random."""
    score = np.array([-3, -2, -1, 1, 2, 3])
    synthetic = np.where(score > 0, 0.7, 0.3) / 3
    real = np.where(score > 0, 0.3, 0.7) / 3
    wins = np.sign(np.subtract.outer(score, score)) / 2 + 0.5
    return float(synthetic @ wins @ real)


def test_readers_who_cannot_tell_are_not_said_to():
    about, read = simulate(30, seed=3)
    rng = np.random.default_rng(4)
    blind = [Reading(**{**vars(r), "guess": str(rng.choice(["real", "synthetic"]))}) for r in read]
    got = analyse(about, blind)["guess"]
    assert got["auc"]["lower"] < 0.5 < got["auc"]["upper"]
    assert min(r["p_chance"] for r in got["readers"]) > 0.01


def test_unfinished_studies_and_unjudged_structures_are_counted_as_such():
    about, read = simulate(10, seed=5)
    part = [r for r in read if r.reader == "Reader 1" or (r.reader == "Reader 2" and r.place < 5)]
    part[0] = Reading(**{**vars(part[0]), "ratings": (math.nan, 3.0, 3.0)})
    got = analyse(about, part)
    assert not got["complete"]
    assert [p["finished"] for p in got["readers"]] == [30, 5, 0]
    assert got["table2"][0]["real"]["ratings"] == 14
    assert got["table2"][1]["real"]["ratings"] == 15
    assert got["guess"]["shared_cases"] == 0
    assert got["guess"]["auc"]["value"] is None
    assert got["non_inferiority"]["structures"][1]["p_at_large"] is None
    json.dumps(got, allow_nan=False)
    alone = analyse({**about, "readers": {"Reader 1": about["readers"]["Reader 1"]}}, read[:30])
    assert alone["agreement"]["between"] == []
    assert alone["guess"]["auc_at_large"]["lower"] is None
