"""The denoiser: a raw network and the recipe that turns it into an estimate of clean CT slices."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from slicewise.diffusion.precondition import denoise
from slicewise.errors import UserError
from slicewise.hu import HUScale


@dataclass(frozen=True)
class Recipe:
    """All that turns a raw network into a denoiser of CT windows.

    Attributes
    ----------
    slices : K, slices in a window.
    joint : one sigma for the whole window (the paper) instead of one a slice.
    size : in-plane pixels per side.
    spacing_mm : voxel spacing (z, y, x) in mm of the data it was trained on.
    scale : HU scale.
    sigma_data : root mean square of clean x.
    sigma_min, sigma_max : trained range of noise levels, units of x.
    position : whether the network is told each window's position below the vertex (of its last slice, in 100 mm).
    min_slices, max_slices : lengths of the volumes it was trained on.
    whole : whether the window is a whole head from the vertex down, whose slices are sampled at once.
    above : how many times as large the pixels of the level above are, whose slices above, at and below the wanted one
        follow the K slices of the window (see `pyramid`); 0 where there is none.
    above_sigma : largest noise that slices of the level above had in training, units of x.
    """

    slices: int
    joint: bool
    size: int
    spacing_mm: tuple[float, float, float]
    scale: HUScale
    sigma_data: float
    sigma_min: float
    sigma_max: float
    position: bool
    min_slices: int
    max_slices: int
    whole: bool = False
    above: int = 0
    above_sigma: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any], path: object) -> "Recipe":
        """The inverse of `to_dict`, after JSON; `UserError` for a recipe of another version, which names the `path` it
        comes from."""
        # What another version knew does not matter where it was off.
        known = {name: value for name, value in values.items() if value or name in Recipe.__dataclass_fields__}
        try:
            typed = {"scale": HUScale(**values["scale"]), "spacing_mm": tuple(values["spacing_mm"])}
            return Recipe(**{**known, **typed})
        except (KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: the checkpoint's recipe is from another version ({reason}); use the version that wrote it"
            ) from None


@dataclass(frozen=True)
class Guidance:
    """A worse denoiser to be led away from, such as one of an earlier step: D + (weight - 1) (D - D_guide) (Karras et
    al. 2024, "Guiding a diffusion model with a bad version of itself", eq. 4), for slices whose noise level lies in
    the `interval` (Kynkäänniemi et al. 2024)."""

    guide: "Denoiser"
    weight: float
    interval: tuple[float, float]

    def __call__(
        self, denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor, position_mm: torch.Tensor | None
    ) -> torch.Tensor:
        """What D (B, A, H, W) of the first A slices of `x` at `sigma` (B, K) becomes."""
        guided = (sigma >= self.interval[0]) & (sigma <= self.interval[1])
        if x.device.type == "cpu" and not guided.any():
            return denoised
        further = (self.weight - 1.0) * guided[:, : denoised.shape[1], None, None]
        return denoised + further * (denoised - self.guide(x, sigma, position_mm))


@dataclass(frozen=True)
class Denoiser:
    """D(x; sigma, context): a network and its recipe; guided where a worse one is at hand."""

    network: nn.Module
    recipe: Recipe
    meta: dict[str, Any]
    core_dtype: torch.dtype = torch.float32
    guidance: Guidance | None = None

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, position_mm: torch.Tensor | None) -> torch.Tensor:
        """(B, K, H, W) noisy x and (B, K) sigmas to the clean slices, those of a level above left out or not;
        `position_mm` (B,) of the last slice of the window."""
        denoised = self._alone(x, sigma, position_mm)
        return denoised if self.guidance is None else self.guidance(denoised, x, sigma, position_mm)

    def _alone(self, x: torch.Tensor, sigma: torch.Tensor, position_mm: torch.Tensor | None) -> torch.Tensor:
        condition = None
        if self.recipe.position:
            assert position_mm is not None
            condition = position_condition(position_mm)
        return denoise(self.network, x, sigma, condition, self.recipe.sigma_data, self.core_dtype)


class Replayed:
    """A denoiser on a GPU whose evaluation is recorded once for every shape of input and then replayed as one CUDA
    graph: a slice takes tens of evaluations of a hundred small kernels each, and starting them one by one costs more
    than running them."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.recipe = denoiser, denoiser.recipe
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]] = {}

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, position_mm: torch.Tensor | None) -> torch.Tensor:
        """What `Denoiser` gives."""
        inputs = [tensor for tensor in (x, sigma, position_mm) if tensor is not None]
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self.graphs:
            self.graphs[key] = self._record(inputs)
        graph, held, result = self.graphs[key]
        for kept, new in zip(held, inputs):
            kept.copy_(new)
        graph.replay()
        return result.clone()

    @torch.no_grad()
    def _record(self, inputs: list[torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]:
        held = [tensor.clone() for tensor in inputs]
        arguments = (held[0], held[1], held[2] if len(held) > 2 else None)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is chosen or cached at a first call is not to be recorded
            for _ in range(3):
                self.denoiser(*arguments)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self.denoiser(*arguments)
        return graph, held, result


def quickest(denoiser: Denoiser, device: str) -> Denoiser | Replayed:
    """The denoiser as it is fastest when called many times: on a GPU replayed."""
    return denoiser if torch.device(device).type == "cpu" else Replayed(denoiser)


def position_condition(position_mm: torch.Tensor) -> torch.Tensor:
    """Position of the window's last slice below the vertex, (B,) mm, as the network's scalar condition (B, 1)."""
    return (position_mm.float() / 100.0).unsqueeze(1)
