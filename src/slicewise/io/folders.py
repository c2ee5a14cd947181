"""What a folder is, by the file that only such a folder of slicewise holds."""

from pathlib import Path

# In a prepared store: its volumes, one a line.
MANIFEST = "manifest.jsonl"
# In a run of `generate`: what was made, and how.
RECORD = "generate.json"
# In a training run: the network to use.
WEIGHTS = "weights.safetensors"


def is_store(path: Path | str) -> bool:
    """Whether the folder is a prepared store (see `slicewise.data.store`)."""
    return Path(path, MANIFEST).is_file()


def is_training(path: Path | str) -> bool:
    """Whether the folder is a training run that has saved its network (see `slicewise.training.run`)."""
    return Path(path, WEIGHTS).is_file()


def generated_series(path: Path | str) -> Path | None:
    """The DICOM series of a run of `generate`, a folder each in this one; None where the path is no such run. A run may
    hold the same volumes a second time, as NIfTI."""
    series = Path(path, "dicom")
    return series if Path(path, RECORD).is_file() and series.is_dir() else None
