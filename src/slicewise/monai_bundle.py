"""The release as a MONAI bundle: a folder that `monai.bundle` runs.

    from slicewise.monai_bundle import write_bundle

    write_bundle("bundle")
    # python -m monai.bundle run --config_file bundle/configs/inference.json --bundle_root bundle --count 4

Weights stay in their own format, so the bundle needs slicewise installed where it runs; its metadata says so.
"""

import json
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import slicewise
from slicewise.errors import UserError, output_errors
from slicewise.hu import HU_MAX, HU_MIN
from slicewise.io.atomic import write_whole
from slicewise.io.dicom_write import check_folder
from slicewise.release import CHECKPOINT

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
# `run` writes DICOM and NIfTI; `network_def` and `images` are for programs that take parts of the configuration.
INFERENCE: dict[str, Any] = {
    "imports": ["$from pathlib import Path", "$import slicewise", "$from slicewise.generate import generate"],
    "bundle_root": ".",
    "checkpoint": f"$Path(@bundle_root) / 'models' / '{CHECKPOINT.name}'",
    "output_dir": "$Path(@bundle_root) / 'generated'",
    "device": "$'cuda' if torch.cuda.is_available() else 'cpu'",
    "count": 1,
    "seed": 0,
    "chain": {"_target_": "slicewise.ChainSettings"},
    "network_def": {"_target_": "slicewise.load_denoiser", "path": "@checkpoint", "device": "@device"},
    "images": (
        "$(v.to_monai() for v in slicewise.generate_volumes(@network_def, @count, @seed, chain=@chain, device=@device))"
    ),
    "settings": {
        "_target_": "slicewise.sampling.GenerateSettings",
        "count": "@count",
        "seed": "@seed",
        "chain": "@chain",
        "device": "@device",
    },
    "run": ["$generate(@checkpoint, Path(@output_dir), @settings)"],
}


def write_bundle(out: Path | str) -> Path:
    """Write the release checkpoint as a MONAI bundle into the new folder `out`, and return it: `configs/metadata.json`,
    `configs/inference.json`, `models/` with the weights, `docs/README.md` (the model card) and `LICENSE`.

    Raises `UserError` for a folder in use or not writable, and where MONAI, whose version the metadata gives, is
    missing.
    """
    out = Path(out)
    check_folder(out)
    metadata = _metadata()
    with output_errors(out):
        for name in ("configs", "models", "docs"):
            (out / name).mkdir(parents=True)
        for file in (CHECKPOINT, CHECKPOINT.with_suffix(".json")):
            shutil.copyfile(file, out / "models" / file.name)
        shutil.copyfile(CHECKPOINT.with_name("MODEL_CARD.md"), out / "docs" / "README.md")
        shutil.copyfile(CHECKPOINT.with_name("LICENSE"), out / "LICENSE")
    write_whole(out / "configs" / "inference.json", (json.dumps(INFERENCE, indent=4) + "\n").encode())
    write_whole(out / "configs" / "metadata.json", (json.dumps(metadata, indent=4) + "\n").encode())
    return out


def _metadata() -> dict[str, Any]:
    """What `configs/metadata.json` says, by MONAI's schema."""
    try:
        monai = version("monai")
    except PackageNotFoundError:
        raise UserError("write_bundle: MONAI is missing, whose version a bundle gives; pip install monai") from None
    about = json.loads(CHECKPOINT.with_suffix(".json").read_text())
    slices, pixels = about["levels"][0]["recipe"]["slices"], about["size"]
    image = {
        "type": "image",
        "modality": "CT",
        "num_channels": 1,
        "spatial_shape": [pixels, pixels, slices],
        "is_patch_data": False,
    }
    return {
        "schema": SCHEMA,
        "version": slicewise.__version__,
        "changelog": {slicewise.__version__: "The release checkpoint of slicewise of this version"},
        "monai_version": monai,
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"slicewise": slicewise.__version__},
        "name": "Head CT generation, slice by slice",
        "task": "Generation of head CT volumes in the full 12-bit range",
        "description": "A plan of the whole head and a denoiser that draws it slice by slice (ASCII, MICCAI 2023)",
        "authors": "The slicewise authors",
        "copyright": "Copyright 2026 The slicewise authors",
        "data_source": "Head phantoms made from the label maps of SynthSeg; no patient data",
        "data_type": "generated",
        "intended_use": "Research on synthetic data; not for diagnosis",
        "references": ["Jeong et al., MICCAI 2023, LNCS 14229, 366-375, doi 10.1007/978-3-031-43999-5_35"],
        "network_data_format": {
            "inputs": {"image": {**image, "format": "noise", "dtype": "float32", "value_range": []}},
            "outputs": {
                "pred": {
                    **image,
                    "format": "hounsfield",
                    "dtype": "int16",
                    "value_range": [HU_MIN, HU_MAX],
                    "channel_def": {"0": "image"},
                }
            },
        },
    }
