"""Small heads and small networks that several tests share."""

from pathlib import Path

import numpy as np
import pytest

from slicewise.data.store import Store, open_store, put_volume
from slicewise.volume import Volume

TOY_SPACING = (5.0, 12.0, 12.0)


def toy_head(seed: int, slices: int = 8, size: int = 16) -> np.ndarray:
    """int16 HU (Z, Y, X): an ellipsoid of brain in a skull, with scan noise, in air of -1000 HU."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(
        (np.arange(slices) - slices * 0.6) / (slices * 0.62),
        *(np.linspace(-1.25, 1.25, size) + rng.uniform(-0.1, 0.1) for _ in range(2)),
        indexing="ij",
    )
    radius = np.sqrt(z**2 + y**2 + x**2) * rng.uniform(0.9, 1.1)
    hu = np.select([radius < 0.8, radius < 1.0], [35.0, 900.0], -1000.0) + rng.normal(0, 4, radius.shape)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Six heads of 8 slices of 16 x 16 pixels: five to train on, one to validate."""
    path: Path = tmp_path_factory.mktemp("toy") / "store"
    for i in range(6):
        volume = Volume.regular(toy_head(i), TOY_SPACING)
        put_volume(path, volume, id=f"h{i}", patient=f"p{i}", split="val" if i == 5 else "train", vertex_slice=0)
    return open_store(path)
