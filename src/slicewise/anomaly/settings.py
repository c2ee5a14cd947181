"""How anomalies are sought."""

from dataclasses import dataclass
from typing import Any, Literal

from slicewise.errors import UserError

# Settings that change the residual, and so what a normal reference must have been measured with.
_MEASURED = ("method", "draws", "noise", "plan_noise", "steps", "gap", "smooth_mm")


@dataclass(frozen=True)
class AnomalySettings:
    """How pseudo-normal heads are drawn, and what counts as a region."""

    method: Literal["noising", "neighbours"] = "noising"
    """ "noising" adds noise to each slice and removes it again, given the true slices beside it; "neighbours" draws
    each slice from the slices beside it alone."""
    draws: int = 8
    """Pseudo-normal heads to draw; the residual is the scan minus their mean."""
    seed: int = 0
    """Seed of the draws; a different seed draws different heads."""
    noise: float = 0.1
    """noising: noise added to slices, in units of x; 0.1 is about 40 HU in the brain on the "half" scale. Fainter
    differences are hidden by it; with more noise, normal anatomy is lost as well."""
    plan_noise: float = 0.2
    """noising: noise added to the plan of a pyramid, in units of x; 0 keeps the scan's own plan, including lesions."""
    steps: int = 0
    """Noise levels, of plan and slices alike; 0 means two for noising, and for neighbours as many as generate uses."""
    gap: int = 3
    """neighbours: consecutive slices that are left out and drawn together; a lesion must fit within this many."""
    above_mm: float = 0.0
    """How much of the head is missing above the first slice, in mm; 0 if the scan starts at or above the vertex."""
    smooth_mm: float = 3.0
    """Standard deviation, in mm, of the Gaussian that smooths residuals before they are scored."""
    z: float = 4.0
    """Smallest absolute z-score of a voxel in a region."""
    region_cm3: float = 0.3
    """Smallest region, in cm3."""
    batch: int = 16
    """Slices that are denoised together."""

    def __post_init__(self) -> None:
        for name, least in (("draws", 1), ("gap", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise UserError(f"AnomalySettings.{name}={getattr(self, name)}: must be {least} or more")
        if self.steps != 0 and self.steps < 2:
            raise UserError(f"AnomalySettings.steps={self.steps}: must be 2 or more, or 0 for the usual number")
        for name in ("noise", "z"):
            if not getattr(self, name) > 0:
                raise UserError(f"AnomalySettings.{name}={getattr(self, name):g}: must be above 0")
        for name in ("plan_noise", "above_mm", "smooth_mm", "region_cm3"):
            if getattr(self, name) < 0:
                raise UserError(f"AnomalySettings.{name}={getattr(self, name):g}: must not be below 0")

    @property
    def measured(self) -> dict[str, Any]:
        """What a normal reference must have in common with a run."""
        return {name: getattr(self, name) for name in _MEASURED}
