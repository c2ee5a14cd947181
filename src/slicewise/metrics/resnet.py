"""ResNet-50 (He et al. 2016) as RadImageNet's PyTorch weights have it, up to its last feature maps.

The names of parameters are torchvision's (`layer1.0.conv1.weight`, …), the stride of a stage lies in its first 3x3
convolution.
"""

import torch
from torch import nn
from torch.nn import functional as F

FEATURES = 2048
# Where the parts lie in a file that was saved from a list of the network's children, as RadImageNet's was.
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a fourfold width at the end, beside a path that is adapted where size or width change."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        adapted = stride != 1 or inputs != 4 * width
        path = (nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
        self.downsample = nn.Sequential(*path) if adapted else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """Pictures (B, 3, 224, 224) to feature maps (B, 2048, 7, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.layer1, self.layer2 = _stage(64, 64, 3, 1), _stage(256, 128, 4, 2)
        self.layer3, self.layer4 = _stage(512, 256, 6, 2), _stage(1024, 512, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        found: torch.Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return found


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(inputs, width, stride), *rest)


def torchvision_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters under torchvision's names, the classifier's left out; names that are neither stay as they are."""
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "backbone" and len(parts) > 2:
            parts = [CHILDREN.get(parts[1], parts[1]), *parts[2:]]
        if parts[0] != "fc":
            renamed[".".join(parts)] = value
    return renamed
