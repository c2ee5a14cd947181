"""Validation of a denoiser, against one whose error is known."""

import math
from types import SimpleNamespace

import pytest
import torch

from slicewise.hu import HUScale
from slicewise.training.denoiser import training_windows
from slicewise.training.validation import errors_by_level


def test_validation_measures_the_error_in_hu(toy_store):
    """Of a denoiser that takes nothing off and adds 2 HU: on the linear scale the error is the noise, in HU."""
    windows = training_windows(toy_store, "train", 3)
    recipe = SimpleNamespace(
        slices=3, scale=HUScale(), above=0, above_sigma=0.0, whole=False, joint=False, sigma_min=0.002
    )

    def measured(shift: float, batch: int) -> list[dict]:
        def denoise(x: torch.Tensor, sigma: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            return x + shift / 2047.5

        denoise.recipe, denoise.network = recipe, torch.nn.Identity()
        return errors_by_level(denoise, windows, 40, batch, 0)

    rows = measured(2.0, 16)
    for row in rows[:4]:  # above sigma 0.1 the range of HU ends the error
        for name in ("head_rmse_hu", "brain_rmse_hu"):
            assert row[name] == pytest.approx(math.hypot(2047.5 * row["sigma"], 2.0), rel=0.05), name
    assert rows[0]["brain_bias_hu"] == pytest.approx(2.0, abs=0.5)
    assert measured(-2.0, 7)[0]["brain_bias_hu"] == pytest.approx(rows[0]["brain_bias_hu"] - 4.0, abs=0.02)
