"""How volumes are sampled: the settings of a chain, and of a run of many."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slicewise.errors import UserError

if TYPE_CHECKING:
    import torch

    from slicewise.diffusion.denoiser import Denoiser, Recipe


@dataclass(frozen=True)
class ChainSettings:
    """How slices are sampled."""

    sampler: Literal["auto", "dpmpp_2m", "dpmpp_2m_sde", "heun", "pc", "pc_noisy"] = "auto"
    """Sampler: "dpmpp_2m" (NFE = steps), "dpmpp_2m_sde" (NFE = steps, with fresh noise at every level), "heun" (2
    steps - 1), "pc" (2 steps, the paper's) or "pc_noisy" (as widely copied inpainting code has it: the noise of the
    last step stays in the result); "auto" uses "dpmpp_2m_sde" for the levels of a pyramid and "dpmpp_2m" for a
    denoiser alone."""
    steps: int = 20
    """Noise levels of a denoiser alone."""
    plan_steps: int = 30
    """Noise levels of a pyramid's plan, which is sampled as a whole."""
    draw_steps: int = 5
    """Noise levels of a pyramid's drawer, which needs few: the plan has decided most of a slice."""
    draw_sigma: float = 0.25
    """Second noise level of a pyramid's drawer, in units of x: the plan has decided what shows above it, so one step
    leads there from the highest."""
    spacing: Literal["karras", "geometric"] = "geometric"
    """How noise levels are spaced: "geometric" (the paper's) or "karras" (EDM), which spends half of its steps above
    sigma = 3, where nothing is left to decide once neighbours are known."""
    sigma_min: float = 0.0
    """Lowest noise level in units of x; 0 uses the lowest that the checkpoint was trained on."""
    sigma_max: float = 0.0
    """Highest noise level in units of x; 0 uses the highest that the checkpoint was trained on."""
    rho: float = 7.0
    """Exponent of the karras spacing."""
    snr: float = 0.15
    """Signal-to-noise ratio of the Langevin corrector (pc)."""
    known_sigma: float = 0.005
    """Noise added to known slices, in units of x (per-slice model only): it hides small errors in the network's own
    slices. 0.005 is 2 HU in the brain on the "half" scale."""
    above_sigma: float = 0.01
    """Noise added to the slices of the level above, in units of x (drawers only): it decides how far they are
    trusted."""
    guidance: float = 1.5
    """Strength of guidance away from a worse checkpoint (`guide`); 1 means none."""
    guidance_interval: tuple[float, float] = (0.02, 5.0)
    """Lowest and highest noise level, in units of x, at which guidance applies."""
    direction: Literal["down", "up", "both"] = "down"
    """Which way the chain goes: "down" (from the vertex), "up" or, from a seed slice, "both" ways."""
    slices: int = 0
    """How many slices to generate; 0 means until the head ends."""

    def sampler_of(self, recipe: "Recipe") -> str:
        """The sampler of a denoiser."""
        if self.sampler != "auto":
            return self.sampler
        return "dpmpp_2m_sde" if recipe.whole or recipe.above else "dpmpp_2m"

    def sigmas(self, denoiser: "Denoiser") -> "torch.Tensor":
        """The schedule, descending, float64."""
        import torch

        recipe = denoiser.recipe
        low = self.sigma_min or recipe.sigma_min
        high = self.sigma_max or recipe.sigma_max
        name, steps = "steps", self.steps
        if recipe.whole or recipe.above:
            name = "plan_steps" if recipe.whole else "draw_steps"
            steps = self.plan_steps if recipe.whole else self.draw_steps
        if steps < 2 or not 0 < low < high:
            raise UserError(
                f"ChainSettings.{name}={steps}, sigma {low} to {high}: needs two steps or more, "
                "0 < sigma_min < sigma_max"
            )
        if self.rho <= 0 or self.snr <= 0 or self.known_sigma < 0 or self.slices < 0:
            raise UserError(
                f"ChainSettings.rho={self.rho:g}, ChainSettings.snr={self.snr:g}: must be above 0; "
                f"ChainSettings.known_sigma={self.known_sigma:g}, ChainSettings.slices={self.slices}: must not be "
                "below 0"
            )
        if recipe.above and steps > 2 and low < self.draw_sigma < high:
            below = self._spaced(steps - 1, low, self.draw_sigma)
            return torch.cat([below.new_tensor([high]), below])
        return self._spaced(steps, low, high)

    def _spaced(self, steps: int, low: float, high: float) -> "torch.Tensor":
        from slicewise.diffusion import schedule

        if self.spacing == "geometric":
            return schedule.geometric(steps, low, high)
        return schedule.karras(steps, low, high, self.rho)


@dataclass(frozen=True)
class GenerateSettings:
    """What to generate, and how."""

    count: int = 4
    """Volumes to generate."""
    seed: int = 0
    """Seed of the run; volume i of seed s is the same in any batch."""
    batch: int = 4
    """Volumes that are generated together."""
    size: int = 0
    """Pixels per side, for checkpoints that draw several: 128 or 512 with the release's; 0 takes what the checkpoint
    says, which is 128 for the release's."""
    chain: ChainSettings = field(default_factory=ChainSettings)
    """Sampler, direction and number of slices."""
    guide: Path | None = None
    """Worse checkpoint of the same levels to guide away from, such as an earlier one; it sharpens uncertain detail
    (see chain.guidance) and takes twice the time."""
    calibrate: Literal["auto", "after", "inside", "off"] = "auto"
    """IC-Net "after" the chain (the uncalibrated volume is kept for the report), "inside" it (each slice is
    calibrated before the next one sees it) or "off"; "auto" calibrates after a denoiser alone, whose chain drifts,
    but not heads that follow a plan."""
    seed_volume: Path | None = None
    """DICOM folder or NIfTI file of a real head to continue from; without one, chains start from air."""
    seed_slice: int = -1
    """Slice of the seed volume, on the working grid, to continue from; 0 is the most superior, -1 the middle."""
    resample_seed: bool = False
    """Resample a seed volume of another spacing onto the checkpoint's grid."""
    keep_seed: bool = False
    """Also write the seed slice, with the scan's own voxels; the headers say which slice that is."""
    nifti: bool = True
    """Write NIfTI as well as DICOM."""
    core: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the network core: "auto", "float32" or "bfloat16"."""
    device: str = "auto"
    """Where to compute: "auto" (CUDA if available), "cpu" or "cuda"."""
