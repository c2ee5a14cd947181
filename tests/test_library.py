"""What `import slicewise` offers: the names, other libraries' images, endless heads, volumes in memory."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import slicewise
from slicewise.checkpoint import load_denoiser
from slicewise.io.geometry import axial
from slicewise.training.denoiser import train_denoiser
from slicewise.volume import Volume
from test_training import TOY

PUBLIC = {
    "Acquisition", "ChainSettings", "HUScale", "LABELS", "Phantom", "PhantomSettings", "SyntheticHeads",
    "SyntheticOrigin", "UserError", "Volume", "Window", "__version__", "calibrate_volume", "citation", "evaluate",
    "fill_volume", "generate_volumes", "load_denoiser", "load_icnet", "make_phantom", "read_volume", "release",
    "write_nifti", "write_series",
}  # fmt: skip


def test_public_names_are_these_and_all_are_there():
    assert set(slicewise.__all__) == PUBLIC == set(dir(slicewise))
    for name in PUBLIC:
        assert getattr(slicewise, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'volumes'"):
        slicewise.volumes  # noqa: B018


def test_importing_costs_nothing():
    code = "import sys, slicewise; print({'torch', 'numpy', 'pydicom', 'nibabel'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_citation_is_bibtex_of_paper_and_software():
    text = slicewise.citation()
    assert text.count("{") == text.count("}")
    assert text.count("@") == 2
    assert "Intensity Calibration Network" in text
    assert slicewise.__version__ in text


# --- Other libraries' images ---


def _volume(tilted: bool) -> Volume:
    hu = np.random.default_rng(0).integers(-1024, 3072, (5, 6, 7)).astype(np.int16)
    volume = Volume.regular(hu, (5.0, 1.5, 0.75), origin=(-20.0, 10.0, 40.0))
    if not tilted:
        return volume
    lean = np.array([0.0, 1.2, 0.0]) * np.arange(5)[:, None]
    return replace(volume, positions=volume.positions + lean)


@pytest.mark.parametrize("tilted", [False, True], ids=["straight", "tilted"])
@pytest.mark.parametrize("library", ["nibabel", "simpleitk", "torchio", "monai"])
def test_there_and_back_again(library, tilted):
    if library == "torchio":
        pytest.importorskip("torchio")
    volume = _volume(tilted)
    image = getattr(volume, f"to_{library}")()
    back = getattr(Volume, f"from_{library}")(image, volume.acquisition)
    assert np.array_equal(back.hu, volume.hu)
    np.testing.assert_allclose(back.positions, volume.positions, atol=1e-9)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9)


def test_every_library_says_the_same_of_a_voxel():
    """The patient's millimetres of one voxel, by each library's own arithmetic."""
    volume = _volume(tilted=False)
    z, y, x = 3, 2, 5
    expected = volume.positions[z] + volume.row_axis * 0.75 * x + volume.column_axis * 1.5 * y
    itk = volume.to_simpleitk()
    assert itk[x, y, z] == volume.hu[z, y, x]
    np.testing.assert_allclose(itk.TransformIndexToPhysicalPoint((x, y, z)), expected)
    image = volume.to_nibabel()
    np.testing.assert_allclose((image.affine @ [x, y, z, 1])[:3] * [-1, -1, 1], expected)
    tensor = volume.to_monai()
    assert tensor.shape == (1, 7, 6, 5)
    assert tensor[0, x, y, z] == volume.hu[z, y, x]
    np.testing.assert_allclose((tensor.affine.numpy() @ [x, y, z, 1])[:3] * [-1, -1, 1], expected)


def test_memory_is_shared_where_it_can_be():
    volume = _volume(tilted=False)
    assert np.shares_memory(np.asanyarray(volume.to_nibabel().dataobj), volume.hu)
    assert np.shares_memory(volume.to_monai().numpy(), volume.hu)


def test_other_axes_come_into_display_order():
    """A coronal stack of another library is the same head as the axial one."""
    import nibabel

    volume = _volume(tilted=False)
    image = volume.to_nibabel().as_reoriented(nibabel.orientations.axcodes2ornt("RSA"))
    back = Volume.from_nibabel(image)
    np.testing.assert_array_equal(axial(back).hu, volume.hu)


def test_values_that_are_no_volume_are_one_line():
    with pytest.raises(slicewise.UserError, match=r"4 dimensions \(1, 2, 3, 4\) where one volume is expected"):
        Volume.from_values(np.zeros((1, 2, 3, 4)), np.eye(4))
    with pytest.raises(slicewise.UserError, match="not finite"):
        Volume.from_values(np.full((2, 3, 4), np.nan), np.eye(4))
    made = Volume.from_values(np.array([[[2.5, 5000.0]]]), np.eye(4))
    assert sorted(made.hu.ravel().tolist()) == [2, 3071]


# --- Heads without end, and volumes in memory ---


def test_workers_of_a_loader_share_the_seeds():
    heads = slicewise.SyntheticHeads(slicewise.PhantomSettings(size=128, pathology=0.0), seed=3, count=2)
    loaded = list(torch.utils.data.DataLoader(heads, batch_size=None, num_workers=2))
    assert sorted(item["seed"] for item in loaded) == [3, 4]
    first = next(item for item in loaded if item["seed"] == 3)
    made = slicewise.make_phantom(3, heads.settings)
    np.testing.assert_array_equal(first["image"][0].numpy(), made.volume.hu)
    np.testing.assert_array_equal(first["label"][0].numpy(), made.labels)
    assert first["image"].dtype == torch.float32
    assert first["label"].dtype == torch.uint8


def test_volumes_in_memory_are_those_that_are_written(toy_store, tmp_path):
    from slicewise.generate import generate, results
    from slicewise.sampling import GenerateSettings

    weights = train_denoiser(toy_store, tmp_path / "run", replace(TOY, steps=4))
    chain = slicewise.ChainSettings(steps=3, slices=3)
    settings = GenerateSettings(count=3, seed=5, batch=2, chain=chain, calibrate="off", nifti=False, core="float32")
    generate(weights, tmp_path / "out", settings)
    made = list(slicewise.generate_volumes(load_denoiser(weights), 3, seed=5, chain=chain, batch=2))
    for volume, (_, _, written) in zip(made, results(tmp_path / "out", 3), strict=True):
        np.testing.assert_array_equal(volume.hu, written.hu)
        assert volume.spacing == written.spacing


def test_the_readme_of_the_package_is_true(tmp_path):
    volume = _volume(tilted=False)
    slicewise.write_nifti(volume, tmp_path / "a.nii.gz")
    read = slicewise.read_volume(tmp_path / "a.nii.gz")
    assert isinstance(read, slicewise.Volume)
    assert np.array_equal(read.hu, volume.hu)
    assert Path(slicewise.release.ICNET).suffix == ".safetensors"
