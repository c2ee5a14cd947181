"""The checkpoints that come with the package; MODEL_CARD.md beside them says what they are."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "pyramid.safetensors"
ICNET = Path(__file__).parent / "icnet.safetensors"
REFERENCE = Path(__file__).parent / "reference.json"
