"""What an evaluation found."""

from dataclasses import dataclass

from slicewise.evaluation.audit import Audit
from slicewise.evaluation.collect import Frame, Side
from slicewise.evaluation.settings import EvaluateSettings
from slicewise.metrics.compare import Distance, Measurement


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found.

    Attributes
    ----------
    extractor : name of the feature extractor.
    settings, frame : how, and on which grid.
    real, synth : what was kept of the sets.
    distances, measurements : rows of the tables.
    audit : None without training data.
    notices : what a reader must know, one sentence each.
    seconds : it took.
    """

    extractor: str
    settings: EvaluateSettings
    frame: Frame
    real: Side
    synth: Side
    distances: tuple[Distance, ...]
    measurements: tuple[Measurement, ...]
    audit: Audit | None
    notices: tuple[str, ...]
    seconds: float
