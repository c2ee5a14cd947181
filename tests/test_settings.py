"""Settings of training: what is accepted at either side of every bound."""

from dataclasses import replace

import pytest

from slicewise.diffusion.settings import SigmaDistribution, WindowTask
from slicewise.errors import UserError
from slicewise.networks.shapes import NCSNppConfig
from slicewise.random import TRAIN_ORDER, Draws
from slicewise.training.denoiser import network_config
from slicewise.training.settings import (
    DenoiserTraining,
    GANTraining,
    ICNetTraining,
    RunSettings,
    SliceVAETraining,
)

ALL = (DenoiserTraining, ICNetTraining, SliceVAETraining, GANTraining)
TINY = 1e-12
# Settings, name, a sound value at the bound, a value just beyond it.
BOUNDS = [
    *((kind, "steps", 1, 0) for kind in ALL),
    *((kind, "batch", 1, 0) for kind in ALL if kind is not SliceVAETraining),
    *((kind, "clip", TINY, 0.0) for kind in ALL),
    *((kind, "lr", TINY, 0.0) for kind in ALL if kind is not GANTraining),
    *((kind, name, 0.0, -TINY) for kind in ALL for name in ("minutes", "save_minutes")),
    *((kind, name, 0, -1) for kind in ALL for name in ("validations", "samples")),
    *((kind, name, value, 1 + 1e-9) for kind in ALL for name in ("warmup", "cooldown") for value in (0.0, 1.0)),
    *((kind, name, 0.0, -TINY) for kind in ALL for name in ("warmup", "cooldown")),
    (DenoiserTraining, "slices", 2, 1),
    (DenoiserTraining, "pool", 1, 0),
    (DenoiserTraining, "above", 0, -1),
    (DenoiserTraining, "validation_windows", 1, 0),
    (DenoiserTraining, "micro_batch", 0, -1),
    (DenoiserTraining, "ema", 0.0, -TINY),
    (DenoiserTraining, "ema", 0.2799, 0.28),
    (ICNetTraining, "validation_pairs", 1, 0),
    (ICNetTraining, "neighbour_error_hu", 0.0, -TINY),
    (ICNetTraining, "slight", 0.0, -TINY),
    (ICNetTraining, "slight", 1.0, 1 + 1e-9),
    *((ICNetTraining, name, 0.0, -TINY) for name in ("air_pairs", "least_tissue")),
    *((ICNetTraining, name, 0.9999, 1.0) for name in ("air_pairs", "least_tissue")),
    (SliceVAETraining, "batch", 2, 1),
    (SliceVAETraining, "heads", 1, 0),
    (SliceVAETraining, "validation_slices", 1, 0),
    (SliceVAETraining, "kl", 0.0, -TINY),
    *((GANTraining, name, 1, 0) for name in ("r1_every", "path_every")),
    *((GANTraining, name, TINY, 0.0) for name in ("ema_images", "ada_images")),
    *((GANTraining, name, 0.0, -TINY) for name in ("lr", "lr_discriminator", "r1", "path", "mixing", "ada_target")),
    *((GANTraining, name, 1.0, 1 + 1e-9) for name in ("mixing", "ada_target")),
]


@pytest.mark.parametrize("kind", ALL)
def test_defaults_are_sound(kind: type[RunSettings]) -> None:
    kind().check()


@pytest.mark.parametrize(("kind", "name", "sound", "beyond"), BOUNDS)
def test_bounds(kind: type[RunSettings], name: str, sound: float, beyond: float) -> None:
    replace(kind(), **{name: sound}).check()
    with pytest.raises(UserError, match=f"{kind.__name__}.{name}="):
        replace(kind(), **{name: beyond}).check()


@pytest.mark.parametrize(
    ("change", "sound"),
    [({"sigma_min": TINY}, True), ({"sigma_min": 0.0}, False), ({"sigma_min": 80.0, "sigma_max": 80.0}, False)],
)
def test_noise_levels_ascend_from_above_zero(change: dict[str, float], sound: bool) -> None:
    settings = DenoiserTraining()
    settings = replace(settings, sigma=replace(settings.sigma, **change))
    if sound:
        settings.check()
    else:
        with pytest.raises(UserError, match=r"SigmaDistribution\.sigma_min"):
            settings.check()


@pytest.mark.parametrize("name", ["latent", "components"])
def test_a_slice_vae_has_a_shape(name: str) -> None:
    settings = SliceVAETraining()
    replace(settings, network=replace(settings.network, channels=(1,), **{name: 1})).check()
    for change in ({name: 0}, {"channels": ()}, {"channels": (0,)}):
        with pytest.raises(UserError, match=r"SliceVAEConfig\.channels"):
            replace(settings, network=replace(settings.network, **change)).check()


def test_the_alias_free_generator_needs_its_layers() -> None:
    settings = GANTraining(network="stylegan3")
    replace(settings, stylegan3=replace(settings.stylegan3, layers=4)).check()
    with pytest.raises(UserError, match=r"StyleGAN3Config\.layers=3"):
        replace(settings, stylegan3=replace(settings.stylegan3, layers=3)).check()
    replace(settings, network="stylegan2", stylegan3=replace(settings.stylegan3, layers=3)).check()


def test_crops_divide_as_often_as_the_network_halves_them() -> None:
    """Three levels halve twice."""
    settings = DenoiserTraining(network="ncsnpp", ncsnpp=NCSNppConfig(multipliers=(1, 2, 2)), position=False)
    network_config(replace(settings, crop=(12, 20)), 32)
    for crop in ((10, 20), (12, 22), (12, 36), (-4, 12)):
        with pytest.raises(UserError, match="must be multiples of 4 up to 32"):
            network_config(replace(settings, crop=crop), 32)


def test_a_window_is_denoised_slice_by_slice_unless_asked() -> None:
    """By default slices have roles of their own, and one is wanted or more."""
    draws = Draws(0, range(500), 0, 0, TRAIN_ORDER)
    sigma, wanted = WindowTask().draw(draws, 4, SigmaDistribution())
    assert wanted.any(dim=1).all()
    only_last = wanted[:, -1] & (wanted.sum(dim=1) == 1)
    assert float(only_last.float().mean()) > 0.6
    assert (sigma[only_last].amax(dim=1) > sigma[only_last].amin(dim=1)).all()
