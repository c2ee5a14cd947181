"""The release as a MONAI bundle, run by MONAI."""

import filecmp
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle import run as run_bundle
from monai.data.meta_tensor import MetaTensor

import slicewise
from slicewise.monai_bundle import write_bundle

SHORT = {"chain::plan_steps": 2, "chain::draw_steps": 2, "chain::slices": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("monai") / "bundle")


def test_bundle_runs_and_writes_volumes_that_say_they_are_synthetic(bundle):
    config = bundle / "configs" / "inference.json"
    run_bundle(
        "run", config_file=str(config), meta_file=str(bundle / "configs" / "metadata.json"), bundle_root=str(bundle),
        **SHORT,
    )  # fmt: skip
    volume = slicewise.read_volume(bundle / "generated" / "dicom" / "volume-0000")
    assert volume.hu.shape == (3, 128, 128)
    assert volume.acquisition.synthetic


def test_images_are_those_of_the_library(bundle):
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    parser.update({"bundle_root": str(bundle), "seed": 3, **SHORT})
    image = next(parser.get_parsed_content("images"))
    chain = slicewise.ChainSettings(plan_steps=2, draw_steps=2, slices=3)
    model = slicewise.load_denoiser(slicewise.release.CHECKPOINT)
    (volume,) = slicewise.generate_volumes(model, 1, 3, chain=chain)
    assert isinstance(image, MetaTensor)
    assert torch.equal(image, volume.to_monai())


def test_metadata_has_what_the_schema_requires(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    required = {
        "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version",
        "required_packages_version", "task", "description", "authors", "copyright", "network_data_format",
    }  # fmt: skip
    assert required <= set(metadata)
    for name in ("version", "monai_version", "pytorch_version", "numpy_version"):
        assert re.fullmatch(r"\d+\.\d+\.\d+", metadata[name])
    assert set(metadata["network_data_format"]) == {"inputs", "outputs"}


def test_metadata_gives_the_shape_that_is_generated(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    output = metadata["network_data_format"]["outputs"]["pred"]
    levels = slicewise.load_denoiser(bundle / "models" / "pyramid.safetensors").levels
    assert output["spatial_shape"] == [levels[-1].recipe.size, levels[-1].recipe.size, levels[0].recipe.slices]
    assert output["dtype"] == np.dtype(np.int16).name


def test_licence_of_the_weights_is_the_project_s(bundle):
    assert filecmp.cmp(bundle / "LICENSE", Path(__file__).parents[1] / "LICENSE", shallow=False)


def test_a_folder_in_use_is_left_alone(bundle):
    with pytest.raises(slicewise.UserError, match="not empty"):
        write_bundle(bundle)
