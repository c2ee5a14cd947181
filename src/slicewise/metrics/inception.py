"""Inception v3 as the Fréchet inception distance uses it: the TensorFlow network of 2015-12-05, ported to PyTorch.

Szegedy et al. (2016). The weights file of the port (`pt_inception-2015-12-05-6726825d.pth`, 95 MB) is the user's: the
names of parameters below are its names. It differs from the torchvision network in the average pools (which do not
count the padding), in the last block's pool (a maximum) and in 1008 classes.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

FEATURES = 2048
CLASSES = 1008


class Unit(nn.Module):
    """Convolution without bias, batch norm (ε = 0.001) and ReLU; `padding` keeps the size unless stated."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, valid: bool = False):
        super().__init__()
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if valid else (size[0] // 2, size[1] // 2)
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _chain(block: nn.Module, names: Sequence[str], x: torch.Tensor) -> torch.Tensor:
    for name in names:
        x = block.get_submodule(name)(x)
    return x


class BlockA(nn.Module):
    """35 x 35: 1x1, 5x5, double 3x3, pool."""

    def __init__(self, inputs: int, pool: int):
        super().__init__()
        self.branch1x1 = Unit(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Unit(inputs, 48, 1), Unit(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(inputs, 64, 1), Unit(64, 96, 3)
        self.branch3x3dbl_3 = Unit(96, 96, 3)
        self.branch_pool = Unit(inputs, pool, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        five = _chain(self, ("branch5x5_1", "branch5x5_2"), x)
        double = _chain(self, ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), x)
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], 1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = Unit(inputs, 384, 3, stride=2, valid=True)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(inputs, 64, 1), Unit(64, 96, 3)
        self.branch3x3dbl_3 = Unit(96, 96, 3, stride=2, valid=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = _chain(self, ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), x)
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    """17 x 17: 7x7 taken apart into rows and columns."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.branch1x1 = Unit(inputs, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Unit(inputs, width, 1), Unit(width, width, (1, 7))
        self.branch7x7_3 = Unit(width, 192, (7, 1))
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Unit(inputs, width, 1), Unit(width, width, (7, 1))
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Unit(width, width, (1, 7)), Unit(width, width, (7, 1))
        self.branch7x7dbl_5 = Unit(width, 192, (1, 7))
        self.branch_pool = Unit(inputs, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = _chain(self, [f"branch7x7_{i}" for i in (1, 2, 3)], x)
        double = _chain(self, [f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)], x)
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Unit(inputs, 192, 1), Unit(192, 320, 3, stride=2, valid=True)
        self.branch7x7x3_1, self.branch7x7x3_2 = Unit(inputs, 192, 1), Unit(192, 192, (1, 7))
        self.branch7x7x3_3 = Unit(192, 192, (7, 1))
        self.branch7x7x3_4 = Unit(192, 192, 3, stride=2, valid=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = _chain(self, ("branch3x3_1", "branch3x3_2"), x)
        seven = _chain(self, [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)], x)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    """8 x 8: 3x3 spread into rows and columns side by side. `last`: the pool takes the maximum."""

    def __init__(self, inputs: int, last: bool):
        super().__init__()
        self.last = last
        self.branch1x1 = Unit(inputs, 320, 1)
        self.branch3x3_1 = Unit(inputs, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Unit(384, 384, (1, 3)), Unit(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(inputs, 448, 1), Unit(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Unit(384, 384, (1, 3)), Unit(384, 384, (3, 1))
        self.branch_pool = Unit(inputs, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.last else _average(x)
        branches = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        branches += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(branches, 1)


class InceptionV3(nn.Module):
    """Pictures (B, 3, 299, 299) in [-1, 1] to feature maps (B, 2048, 8, 8), whose mean over pixels is the vector that
    the distance is taken of. `fc` is there because the file holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2, valid=True)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3, valid=True)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3, valid=True)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, last=False), BlockE(2048, last=True)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = self.get_submodule(f"Mixed_{name}")(x)
        return x
