"""The shapes of the networks, which need no torch to be told."""

from dataclasses import dataclass, field

from slicewise.errors import UserError

OUTPUTS = ("affine", "residual")


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the network."""

    slices: int = field(default=3, metadata={"derived": True})
    """K, slices in a window; also the number of noise levels it is told."""
    context: int = field(default=0, metadata={"derived": True})
    """How many of them, the last, are only shown: those of a level above, of which nothing is asked."""
    channels: tuple[int, ...] = (24, 48, 96, 160)
    """Channels at each level, from the folded full resolution downward."""
    blocks: tuple[int, ...] = (1, 1, 2, 2)
    """Residual blocks at each level, on the way down; the way up has as many."""
    attention: tuple[bool, ...] = (False, False, False, True)
    """Self-attention after the blocks at each level."""
    fold: int = 2
    """Side of the pixel square that is folded into channels at the input (1 = none)."""
    coordinates: bool = True
    """Give the stem x, y and r^2 of every pixel: the first slice of a head has no neighbour to show where it lies, and
    a convolution alone learns places only slowly, from its padding."""
    copy: bool = True
    """Add to each output slice a linear mix of the input slices, its weights a function of the noise levels: what
    neighbouring slices share passes through exactly, and the network is left with what differs."""
    detail: tuple[float, ...] = (8.0, 64.0)
    """Amplifications (times `UNet.zoom`) at which each slice less its 3 x 3 mean is shown to the stem and to the linear
    mix. At sigma = 0.01 the noise to be found is a hundredth of what the rest of the input spans: networks learn to
    amplify it slowly, and a half-precision core rounds it away."""
    window: tuple[float, ...] = (16.0, 4.0, 16.0, 16.0, 16.0)
    """Amplifications (times `UNet.zoom`) at which each slice is shown through a soft brain window centred on
    `UNet.centre`."""
    window_mean: tuple[int, ...] = (1, 1, 5, 9, 17)
    """Sides in pixels of the square means taken before each of them (1 = none): a ventricle stands out from the brain
    by a twentieth of the input's range, grey from white matter by a fiftieth, and only a mean over many pixels shows
    either where the noise is ten times that."""
    local: bool = True
    """Answer with F, a mean and a spread for every voxel, instead of F alone (see `precondition.posterior`). The mean
    is drawn from two: a coarse one for all of the range, and where that comes near `UNet.centre` a fine one about it:
    in the brain a per cent of the range is as much as the tissues differ by."""
    condition: int = field(default=1, metadata={"derived": True})
    """Number of scalar conditions (slice position, spacing); 0 in the paper's presets."""
    embedding: int = 128
    """Width of the embedding of noise levels and conditions."""

    @property
    def multiple(self) -> int:
        """What the sides of a slice, in pixels, must be a multiple of."""
        return int(self.fold * 2 ** (len(self.channels) - 1))


@dataclass(frozen=True)
class UNet3dConfig:
    """Shape of the network."""

    slices: int = field(default=40, metadata={"derived": True})
    """K, slices of a window."""
    size: int = field(default=32, metadata={"derived": True})
    """Pixels per side."""
    channels: tuple[int, ...] = (48, 96, 192)
    """Channels at each level; each halves slices, rows and columns of the one before."""
    blocks: tuple[int, ...] = (1, 2, 2)
    """Residual blocks at each level, on the way down; the way up has as many."""
    attention: tuple[bool, ...] = (False, False, True)
    """Self-attention after the blocks at each level."""
    fold: int = 2
    """Side of the pixel square that is folded into channels at the input (1 = none); slices are not folded."""
    window: tuple[float, ...] = (16.0, 4.0)
    """Amplifications at which every voxel is shown through a soft window about the brain (see `UNetConfig`)."""
    modes: int = 96
    """Modes of the Gaussian."""
    condition: int = field(default=0, metadata={"derived": True})
    """Number of scalar conditions; a whole head needs none."""
    embedding: int = 128
    """Width of the embedding of a slice's noise level."""

    @property
    def multiple(self) -> int:
        """What the sides of a slice, in pixels, must be a multiple of."""
        return int(self.fold * self.slices_multiple)

    @property
    def slices_multiple(self) -> int:
        """What the number of slices must be a multiple of."""
        return int(2 ** (len(self.channels) - 1))


@dataclass(frozen=True)
class NCSNppConfig:
    """Shape of the network; the defaults suit 128² on one GPU.

    The paper's setting at 512², after score_sde's FFHQ-1024 VE configuration (16 channels, multipliers 1, 2, 4, 8, 16,
    32, 32, 32, one block a level) with its 1024² level left off, so that every resolution keeps its width: image_size
    512, channels 32, multipliers (1, 2, 4, 8, 16, 16, 16), blocks 1, attention (16,), fourier_scale 16.
    """

    slices: int = field(default=2, metadata={"derived": True})
    """K, slices in the window, each with its own noise level."""
    image_size: int = field(default=128, metadata={"derived": True})
    """Pixels per side that `attention` refers to; the network itself takes any multiple of 2**(levels - 1)."""
    channels: int = 64
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """Width of each level in units of `channels`, from full resolution downward."""
    blocks: int = 2
    """Residual blocks per level going down; one more going up."""
    attention: tuple[int, ...] = (16,)
    """Resolutions with self-attention (the lowest level always has it, between the two halves)."""
    condition: int = field(default=0, metadata={"derived": True})
    """Number of further scalars the network is told (position, spacing); 0 in the paper."""
    fir: bool = True
    """Resample with the filter [1, 3, 3, 1] rather than with a box."""
    fourier_scale: float = 16.0
    """Standard deviation of the frequencies at which log σ is embedded."""
    in_channels: int = field(default=0, metadata={"derived": True})
    """Channels of the input; 0 means one per slice."""
    out_channels: int = field(default=0, metadata={"derived": True})
    """Channels of the output; 0 means one per slice."""

    def __post_init__(self) -> None:
        if self.image_size % 2 ** (len(self.multipliers) - 1):
            raise UserError(
                f"NCSN++: image size {self.image_size} cannot be halved {len(self.multipliers) - 1} times; "
                "use fewer multipliers or another size"
            )
        if self.slices < 1 or self.channels < 4 or self.channels % 4 or self.blocks < 1 or not self.multipliers:
            raise UserError(
                f"NCSN++: {self.slices} slices, {self.channels} channels, {self.blocks} blocks; it needs at least one "
                "slice and block, and channels in multiples of 4"
            )


@dataclass(frozen=True)
class ICNetConfig:
    """Shape of an IC-Net."""

    channels: int = 32
    """Width at the first level; the levels below have twice as many."""
    levels: int = 3
    """Resolutions, each half the one above."""
    fold: int = 4
    """Side of the pixel square that goes into channels at the input: full-resolution convolutions would be most of the
    cost. The input's sides are padded with air to a multiple of fold * 2**(levels - 1)."""
    output: str = "affine"
    """Output: "affine" (one gain and offset for a slice, so that anatomy cannot change) or "residual" (a correction
    image on top of them, the paper's image-to-image form)."""

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise UserError(f"IC-Net output {self.output!r} is unknown; choose one of {', '.join(OUTPUTS)}")
        if self.levels < 2 or self.channels < 4 or self.fold < 1:
            raise UserError(
                f"IC-Net: {self.levels} levels, {self.channels} channels; it needs at least 2 levels and 4 channels"
            )
