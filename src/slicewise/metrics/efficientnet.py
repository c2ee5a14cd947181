"""EfficientNet-Lite0 (Tan and Le 2019; Lite: Liu 2020) up to its last feature maps, as its ImageNet weights have it.

Lite is EfficientNet without squeeze-and-excitation, with ReLU6 for swish. The published weights were made in
TensorFlow, so a convolution of stride 2 pads one pixel more at the right and the bottom ("same" padding).
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

FEATURES = 1280
SIZE = 224
# Blocks, kernel, first stride, widening and channels of each stage (Tan and Le 2019, table 1).
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip


class ConvNorm(nn.Module):
    """Convolution, batch norm and, if wanted, ReLU6."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True):
        super().__init__()
        # Of even sides, at stride 2: a pixel less at the left and the top.
        self.odd = (kernel // 2 - 1, kernel // 2) * 2 if stride == 2 else None
        padding = 0 if self.odd else kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3)
        self.active = active

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.odd:
            x = F.pad(x, self.odd)
        x = self.norm(self.conv(x))
        return F.relu6(x, inplace=True) if self.active else x

    def fuse(self) -> None:
        """Multiply the norm into the convolution: the same features to 1e-5, nearly twice as fast."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()


class Block(nn.Module):
    """Inverted residual (Sandler et al. 2018): widened, filtered channel by channel, narrowed."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, widening: int):
        super().__init__()
        wide = inputs * widening
        widen = [ConvNorm(inputs, wide, 1)] if widening > 1 else []
        filtered = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.path = nn.Sequential(*widen, filtered, ConvNorm(wide, outputs, 1, active=False))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.path(x)
        return found.add_(x) if self.residual else found


class EfficientNetLite0(nn.Sequential):
    """Pictures (B, 3, 224, 224) to feature maps (B, 1280, 7, 7)."""

    def __init__(self) -> None:
        channels, blocks = 32, []
        for count, kernel, stride, widening, outputs in STAGES:
            for number in range(count):
                blocks.append(Block(channels, outputs, kernel, 1 if number else stride, widening))
                channels = outputs
        super().__init__(ConvNorm(3, 32, 3, 2), *blocks, ConvNorm(channels, FEATURES, 1))

    def load_published(self, state: dict[str, torch.Tensor]) -> None:
        """Take the published weights, whose names are another's but whose order is that of the layers; the classifier,
        last in the file, is left out. Raises `RuntimeError` where shapes differ."""
        values = [value for name, value in state.items() if not name.startswith("_fc.")]
        self.load_state_dict(dict(zip(self.state_dict(), values, strict=True)))

    def fuse_norms(self) -> None:
        """See `ConvNorm.fuse`; for evaluation only."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fuse()
