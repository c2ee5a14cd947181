"""How two sets of volumes are compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slicewise.errors import UserError
from slicewise.hu import Window


@dataclass(frozen=True)
class EvaluateSettings:
    """How two sets are compared."""

    extractor: Literal["efficientnet-lite0", "inception", "radimagenet"] = "efficientnet-lite0"
    """Network whose features are compared."""
    weights: Path | None = None
    """File of the network's weights, for "inception" and "radimagenet"."""
    weights_sha256: str = ""
    """SHA-256 (or its first digits) that the weights must have; the standard Inception file is known."""
    whole: tuple[float, float] = (-1024.0, 3071.0)
    """First HU window, the whole range."""
    brain: tuple[float, float] = (-10.0, 70.0)
    """Second HU window; also what counts as parenchyma."""
    all_slices: bool = True
    """Compute Fréchet distances on all slices as well as on the middle ones."""
    step_mm: float = 10.0
    """Distance between the coronal and sagittal slices of "all", mm; 0 uses every slice."""
    resample: bool = False
    """Resample volumes on another grid onto that of the first real volume; otherwise they are refused."""
    depth: int = 0
    """Slices that bMMD² and MS-SSIM use, from the top; 0 means as many as the first real volume has."""
    pairs: int = 25
    """Largest number of pairs of volumes per set for MS-SSIM."""
    batch: int = 4
    """Volumes in a batch of bMMD²."""
    neighbours: int = 5
    """k of precision, recall, density and coverage."""
    rounds: int = 200
    """Bootstrap draws."""
    seed: int = 0
    """Seed of the bootstrap draws and random halves."""

    def __post_init__(self) -> None:
        for name in ("whole", "brain"):
            lo, hi = getattr(self, name)
            if not lo < hi:
                raise UserError(f"EvaluateSettings.{name}={lo:g} {hi:g}: the window is empty; give its lower end first")
        if self.whole == self.brain:
            raise UserError("EvaluateSettings.whole and EvaluateSettings.brain are one window; give two different ones")
        for name, least in (("batch", 2), ("neighbours", 1), ("rounds", 10), ("pairs", 0), ("depth", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"EvaluateSettings.{name}={getattr(self, name)}: must be {least} or more")
        if not self.step_mm >= 0:
            raise UserError(f"EvaluateSettings.step_mm={self.step_mm:g}: must be 0 or more")

    @property
    def windows(self) -> tuple[Window, Window]:
        return Window(*self.whole), Window(*self.brain)
