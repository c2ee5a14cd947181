"""Feature extractors whose weights the user brings: architecture against published shapes, loading, refusals."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from slicewise.errors import UserError
from slicewise.metrics import extractors
from slicewise.metrics.extractors import make_extractor
from slicewise.metrics.inception import InceptionV3
from slicewise.metrics.resnet import CHILDREN, ResNet50


@pytest.fixture(scope="module")
def inception() -> InceptionV3:
    torch.manual_seed(0)
    return InceptionV3().eval()


@pytest.fixture(scope="module")
def resnet() -> ResNet50:
    torch.manual_seed(1)
    return ResNet50().eval()


def shapes(network: nn.Module, x: torch.Tensor, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Sizes (channels, height, width) that the named parts give."""
    found: dict[str, tuple[int, ...]] = {}
    hooks = [
        network.get_submodule(n).register_forward_hook(lambda _, __, y, n=n: found.update({n: tuple(y.shape[1:])}))
        for n in names
    ]
    with torch.no_grad():
        found["out"] = tuple(network(x).shape[1:])
    for hook in hooks:
        hook.remove()
    return found


def test_inception_has_the_published_sizes(inception: InceptionV3) -> None:
    """Table 1 of Szegedy et al. (2016): sizes at every stage. Parameters: Keras publishes 21,768,352 trainable ones for
    the same network without its classifier and without batch norm's scales, of which there is one a channel."""
    stages = {
        "Conv2d_1a_3x3": (32, 149, 149), "Conv2d_2a_3x3": (32, 147, 147), "Conv2d_2b_3x3": (64, 147, 147),
        "Conv2d_3b_1x1": (80, 73, 73), "Conv2d_4a_3x3": (192, 71, 71), "Mixed_5b": (256, 35, 35),
        "Mixed_5c": (288, 35, 35), "Mixed_5d": (288, 35, 35), "Mixed_6a": (768, 17, 17), "Mixed_6e": (768, 17, 17),
        "Mixed_7a": (1280, 8, 8), "Mixed_7b": (2048, 8, 8), "Mixed_7c": (2048, 8, 8), "out": (2048, 8, 8),
    }  # fmt: skip
    assert shapes(inception, torch.zeros(1, 3, 299, 299), list(stages)[:-1]) == stages
    parameters = {n: p for n, p in inception.named_parameters() if not n.startswith("fc.")}
    scales = sum(p.numel() for n, p in parameters.items() if n.endswith("bn.weight"))
    assert sum(p.numel() for p in parameters.values()) - scales == 21_768_352
    assert tuple(inception.fc.weight.shape) == (1008, 2048)
    # Shapes of single layers, (out, in, height, width), as the port's file has them.
    state = inception.state_dict()
    layers = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3), "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1), "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7), "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_6e.branch7x7_3.conv.weight": (192, 192, 7, 1), "Mixed_7a.branch3x3_2.conv.weight": (320, 192, 3, 3),
        "Mixed_7b.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1), "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
    }  # fmt: skip
    assert {name: tuple(state[name].shape) for name in layers} == layers


def test_pools_of_inception_are_those_of_the_fid_network(inception: InceptionV3) -> None:
    """Average pools leave the padding out; the very last block takes the maximum."""
    from slicewise.metrics.inception import _average

    ones = torch.ones(1, 1, 4, 4)
    torch.testing.assert_close(_average(ones), ones)
    assert inception.Mixed_7c.last
    assert not inception.Mixed_7b.last
    x = torch.randn(1, 2048, 8, 8)
    pooled = torch.nn.functional.max_pool2d(x, 3, 1, 1)
    with torch.no_grad():
        expected = inception.Mixed_7c.branch_pool(pooled)
        torch.testing.assert_close(inception.Mixed_7c(x)[:, -192:], expected)


def test_resnet_has_the_published_sizes(resnet: ResNet50) -> None:
    """torchvision publishes 25,557,032 parameters with its classifier of 1000 classes."""
    stages = {"conv1": (64, 112, 112), "layer1": (256, 56, 56), "layer2": (512, 28, 28), "layer3": (1024, 14, 14)}
    stages |= {"layer4": (2048, 7, 7), "out": (2048, 7, 7)}
    assert shapes(resnet, torch.zeros(1, 3, 224, 224), list(stages)[:-1]) == stages
    assert sum(p.numel() for p in resnet.parameters()) == 25_557_032 - 2048 * 1000 - 1000
    assert resnet.layer2[0].conv1.stride == (1, 1)
    assert resnet.layer2[0].conv2.stride == (2, 2)


def test_weights_are_loaded_under_either_naming_and_give_the_networks_own_features(
    resnet: ResNet50, tmp_path: Path
) -> None:
    picture = np.random.default_rng(0).random((224, 224), np.float32)
    with torch.no_grad():
        x = torch.from_numpy(picture).expand(1, 3, -1, -1)
        expected = resnet((x - 0.5) / 0.5).mean(dim=(2, 3)).numpy()
    children = {v: k for k, v in CHILDREN.items()}
    state = resnet.state_dict()
    theirs = {f"backbone.{children[n.split('.')[0]]}.{n.split('.', 1)[1]}": v for n, v in state.items()}
    with_classifier = {**state, "fc.weight": torch.zeros(165, 2048), "fc.bias": torch.zeros(165)}
    older = {n: v for n, v in with_classifier.items() if not n.endswith("num_batches_tracked")}
    for name, kept in (("own.pt", theirs), ("torchvision.pth", older)):
        torch.save(kept, tmp_path / name)
        extractor = make_extractor("radimagenet", tmp_path / name)
        np.testing.assert_allclose(extractor([picture]), expected, rtol=1e-3, atol=1e-4)
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:8] in extractor.name


def test_inception_weights_are_checked_by_hash_and_loaded(inception: InceptionV3, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(inception.state_dict(), file)
    with pytest.raises(UserError, match="expected 6726825d"):
        make_extractor("inception", file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", digest[:8])
    extractor = make_extractor("inception", file)
    picture = np.random.default_rng(1).random((299, 299), np.float32)
    with torch.no_grad():
        x = torch.from_numpy(picture).expand(1, 3, -1, -1)
        expected = inception(2 * x - 1).mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(extractor([picture]), expected, rtol=1e-3, atol=1e-4)
    assert extractor.features == 2048
    assert "Inception v3" in extractor.name
    assert digest[:8] in extractor.name


def test_wrong_weights_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    for name, weights, sha256, reason in [
        ("inception", None, "", "needs its weights"),
        ("efficientnet-lite0", tmp_path / "text.pth", "", "comes with its own"),
        ("vgg", None, "", "unknown; choose one of"),
        ("radimagenet", tmp_path / "absent.pth", "", "cannot be read"),
        ("radimagenet", tmp_path / "text.pth", "", "not a file of PyTorch weights"),
        ("radimagenet", tmp_path / "other.pth", "", "parameters are missing"),
        ("radimagenet", tmp_path / "list.pth", "", "no plain table of tensors"),
        ("radimagenet", tmp_path / "other.pth", "0123abcd", "expected 0123abcd"),
        ("inception", tmp_path / "other.pth", "", "expected 6726825d"),
    ]:
        with pytest.raises(UserError, match=reason) as caught:
            make_extractor(name, weights, sha256)
        assert "\n" not in str(caught.value)
