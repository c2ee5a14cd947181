"""Label maps of real heads: a folder of NIfTI files in any numbering, checked, cleaned, in a frame of the head's own.

The head frame (mm): x to the patient's left, y to the back, z up; the origin is the middle of the cerebrum, x runs
through both eyes and hemispheres, and the plane z = constant is that of the eyes and the brain stem, near the
orbitomeatal plane of radiology.
"""

import hashlib
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from slicewise.errors import UserError

# What a numbering may name. The code of a tissue is its place here.
TISSUES = (
    "air", "left white matter", "right white matter", "left cortex", "right cortex", "white matter", "cortex",
    "ventricle", "midline ventricle", "cerebellar white matter", "cerebellar cortex", "brain stem", "thalamus",
    "caudate", "putamen", "pallidum", "hippocampus", "ventral diencephalon", "fluid", "white matter lesion", "vessel",
    "chiasm", "choroid plexus", "artery", "vein", "eye", "eye muscle", "optic nerve", "soft tissue", "mucosa", "skin",
    "spinal cord", "cortical bone", "cancellous bone", "fat", "muscle", "dura",
)  # fmt: skip
CODE = {name: code for code, name in enumerate(TISSUES)}
BONE = ("cortical bone", "cancellous bone")
CEREBRUM = (
    "left white matter", "right white matter", "left cortex", "right cortex", "white matter", "cortex", "thalamus",
    "caudate", "putamen", "pallidum", "hippocampus", "white matter lesion",
)  # fmt: skip
BRAIN = (
    *CEREBRUM, "ventricle", "midline ventricle", "cerebellar white matter", "cerebellar cortex", "brain stem",
    "ventral diencephalon", "chiasm", "choroid plexus", "vessel",
)  # fmt: skip
OUTER_OPENING_MM = 5.0
GRID_MM = 1.0  # maps are brought to this voxel


@dataclass(frozen=True)
class HeadMap:
    """One person's label map.

    Attributes
    ----------
    name : of the file, without its suffix.
    tissue : uint8 (Z, Y, X), codes of `TISSUES`, voxels of 1 mm; first slice superior, rows to the patient's left,
        columns to the back; cut to the head.
    axes : float64 (3, 3), rows are the head frame's x, y and z as directions along the voxel axes (x, y, z-down).
    origin : float64 (3,), (x, y, z-down) voxel index of the head frame's origin.
    sha256 : of the file.
    """

    name: str
    tissue: np.ndarray
    axes: np.ndarray
    origin: np.ndarray
    sha256: str

    def mask(self, *names: str) -> np.ndarray:
        """bool (Z, Y, X): where any of the named tissues is."""
        table = np.zeros(256, bool)
        table[[CODE[name] for name in names]] = True
        found: np.ndarray = table[self.tissue]
        return found


def find_maps(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, sorted by name. Raises `UserError` where there are none, or two are the same."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"PhantomSettings.anatomy={folder}: no such folder; give one that holds label maps (NIfTI)")
    from slicewise.io.nifti import is_nifti

    files = sorted(file for file in folder.iterdir() if file.is_file() and is_nifti(file))
    if not files:
        raise UserError(
            f"PhantomSettings.anatomy={folder}: holds no label map (.nii or .nii.gz); give the folder that does"
        )
    return files


def read_numbering(file: Path | None = None) -> dict[int, int]:
    """Label number in a file to code of `TISSUES`, from a TOML table of tissue = [numbers].

    Without a file FreeSurfer's numbers are taken. Raises `UserError` for a file that cannot be read, names an unknown
    tissue, or gives one number twice.
    """
    name = str(file) if file else "freesurfer.toml"
    try:
        text = (file or resources.files(__package__).joinpath(name)).read_text()
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"PhantomSettings.numbering={name}: cannot be read as TOML ({error}); see brainweb.toml"
        ) from error
    codes: dict[int, int] = {}
    for tissue, numbers in table.items():
        if tissue not in CODE:
            raise UserError(
                f"PhantomSettings.numbering={name}: unknown tissue {tissue!r}; known are {', '.join(TISSUES)}"
            )
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise UserError(f"PhantomSettings.numbering={name}: {tissue!r} needs a list of whole numbers, like [2, 41]")
        for number in numbers:
            if codes.setdefault(number, CODE[tissue]) != CODE[tissue]:
                raise UserError(
                    f"PhantomSettings.numbering={name}: {number} is both {TISSUES[codes[number]]} and {tissue}"
                )
    return codes


def read_map(file: Path, numbering: dict[int, int]) -> HeadMap:
    """Read, check and clean one label map.

    Raises `UserError` where the file is damaged, not 3D, not whole numbers, holds labels that the numbering does not
    name, is not in millimetres, or shows no whole head (no brain, bone or skin; far too small or too large).
    """
    import nibabel as nib  # procedural heads do without it

    from slicewise.volume import RAS_TO_LPS, volume_from_affine

    try:
        image: Any = nib.load(file)
        values = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel raises many kinds on what is no image
        raise UserError(f"{file}: not a NIfTI file, or cut short ({type(error).__name__}); copy it again") from error
    if values.ndim != 3 or not isinstance(image, nib.Nifti1Image):
        raise UserError(f"{file}: shape {values.shape}; expected a map of three dimensions")
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        raise UserError(f"{file}: holds fractions; a label map has one whole number per tissue")
    if values.min() < 0 or values.max() > 30000:
        raise UserError(f"{file}: labels from {values.min():g} to {values.max():g}; expected 0 to 30000")
    volume = volume_from_affine(values.astype(np.int16), RAS_TO_LPS @ image.affine)
    present = np.unique(volume.hu)
    unknown = [int(n) for n in present if int(n) not in numbering]
    if unknown:
        shown = ", ".join(map(str, unknown[:12])) + (" …" if len(unknown) > 12 else "")
        raise UserError(
            f"{file}: the numbering does not name label {shown}; add it to a table (PhantomSettings.numbering)"
        )
    if len(present) < 3:
        raise UserError(f"{file}: holds {len(present)} label(s), so it is not a map of a head")
    table = np.zeros(int(present.max()) + 1, np.uint8)
    for number in present:
        table[number] = numbering[int(number)]
    if not 0.3 <= min(volume.spacing) <= max(volume.spacing) <= 3:
        raise UserError(f"{file}: voxels of {volume.spacing} mm; expected 0.3 to 3 mm; check the units")
    tissue = _to_grid(table[volume.hu], volume.spacing)
    _check_head(file, tissue)
    tissue = clean(tissue)
    axes, origin = head_frame(tissue)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return HeadMap(file.name.removesuffix(".gz").removesuffix(".nii"), tissue, axes, origin, digest)


def _to_grid(tissue: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Nearest voxels on the 1 mm grid."""
    if np.allclose(spacing, GRID_MM, atol=0.01):
        return tissue
    at = [
        np.minimum(((np.arange(round(n * s / GRID_MM)) + 0.5) * GRID_MM / s).astype(int), n - 1)
        for n, s in zip(tissue.shape, spacing, strict=True)
    ]
    return tissue[np.ix_(*at)]


def _check_head(file: Path, tissue: np.ndarray) -> None:
    litres = {
        "brain": np.isin(tissue, [CODE[t] for t in BRAIN]).sum() / 1e6,
        "bone": np.isin(tissue, [CODE[t] for t in BONE]).sum() / 1e6,
        "head": (tissue > 0).sum() / 1e6,
    }
    for what, low, high in (("brain", 0.5, 2.5), ("bone", 0.1, 2.5), ("head", 1.5, 10.0)):
        if not low <= litres[what] <= high:
            raise UserError(
                f"{file}: {litres[what]:.2f} litres of {what}, where a head has {low:g} to {high:g}; "
                "give a map of a whole head in millimetres, with its skull"
            )


def clean(tissue: np.ndarray) -> np.ndarray:
    """The head alone, whole: strays outside it gone, speckles on its skin smoothed, holes of air in bone filled.

    Air is kept where it belongs: sinuses and airways (large), ethmoid cells (beside mucosa) and mastoid cells (in the
    temporal bone, low and lateral). The grid is cut to the head with a margin of 3 mm at the sides and above.
    """
    tissue = _largest(tissue)
    rows = [np.flatnonzero((tissue > 0).any(axis)) for axis in ((1, 2), (0, 2), (0, 1))]
    tissue = tissue[rows[0][0] : rows[0][-1] + 1, rows[1][0] : rows[1][-1] + 1, rows[2][0] : rows[2][-1] + 1]
    tissue = np.pad(tissue, ((3, 0), (3, 3), (3, 3)))
    return _fill_holes(_largest(_smooth_skin(tissue)))


def _largest(tissue: np.ndarray) -> np.ndarray:
    """The largest connected piece; air for the rest."""
    pieces, n = ndimage.label(tissue > 0)
    if n < 2:
        return tissue
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.where(pieces == sizes.argmax(), tissue, 0).astype(np.uint8)


def _smooth_skin(tissue: np.ndarray) -> np.ndarray:
    """Noisy faces: what sticks out of the head by a voxel or two goes, and pits of that size are filled with skin."""
    head = ~outside(tissue)
    smooth = ndimage.gaussian_filter(head.astype(np.float32), 1.5, mode="nearest") > 0.5
    deep = ndimage.uniform_filter(head.astype(np.float32), 9, mode="nearest") > 0.98
    out = tissue.copy()
    out[head & ~smooth & ~deep & np.isin(tissue, [CODE["skin"], CODE["soft tissue"]])] = 0
    out[~head & smooth] = CODE["skin"]
    return out


def outside(tissue: np.ndarray) -> np.ndarray:
    """bool (Z, Y, X): air around the head. Nostrils, mouth and ear canals, narrower than 10 mm, count to the head."""
    air = np.pad(tissue == 0, ((8, 0), (8, 8), (8, 8)), constant_values=True)
    far = ndimage.distance_transform_edt(air) > OUTER_OPENING_MM
    regions, _ = ndimage.label(far)
    around = regions == regions[0, 0, 0]
    grown = (ndimage.distance_transform_edt(~around) < OUTER_OPENING_MM + 0.5) & air
    found: np.ndarray = grown[8:, 8:-8, 8:-8]
    return found


def _fill_holes(tissue: np.ndarray) -> np.ndarray:
    """Fill small holes of air with what is most about them, unless they are cells of the mastoid or the ethmoid."""
    air = tissue == 0
    regions, _ = ndimage.label(air)
    sizes = np.bincount(regions.ravel())
    small = air & (sizes[regions] < 300)
    if not small.any():
        return tissue
    mucosa = ndimage.binary_dilation(tissue == CODE["mucosa"], iterations=3)
    near_bone = ndimage.uniform_filter(np.isin(tissue, [CODE[t] for t in BONE]).astype(np.float32), 5) > 0.2
    keep = mucosa & near_bone
    keep |= temporal_bone(tissue) & near_bone
    holes = small & ~keep
    filled = tissue.copy()
    # A hole takes the nearest tissue; in the vault that is bone.
    nearest = ndimage.distance_transform_edt(holes | (tissue == 0), return_distances=False, return_indices=True)
    filled[holes] = tissue[tuple(axis[holes] for axis in nearest)]
    return filled


def temporal_bone(tissue: np.ndarray) -> np.ndarray:
    """bool (Z, Y, X): a ball of 27 mm about each mastoid, found from the brain stem and the width of the skull."""
    stem = np.argwhere(tissue == CODE["brain stem"])
    inside = np.zeros(tissue.shape, bool)
    if not len(stem):
        return inside
    z, y, _ = stem.mean(0)
    skull = np.isin(tissue, [CODE[t] for t in BONE])[int(z)].any(0)
    ends = np.flatnonzero(skull)
    grid = np.ogrid[tuple(slice(0, n) for n in tissue.shape)]
    for side in (ends[0] + 16, ends[-1] - 16):
        inside |= (grid[0] - z - 12) ** 2 + (grid[1] - y - 8) ** 2 + (grid[2] - side) ** 2 < 27**2
    return inside


def head_frame(tissue: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes float64 (3, 3) and origin (3,) of the head frame, in (x, y, z-down) voxels; see the module's docstring.

    Without eyes or brain stem in the map the pitch, without left and right labels the turn, are the voxel grid's own.
    """

    def centre(*names: str) -> np.ndarray | None:
        at = np.argwhere(np.isin(tissue, [CODE[name] for name in names]))
        return at.mean(0)[::-1] if len(at) > 100 else None

    origin = centre(*CEREBRUM)
    assert origin is not None, "checked by _check_head"
    x, y = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    left, right = centre("left white matter", "left cortex"), centre("right white matter", "right cortex")
    eyes = np.argwhere(tissue == CODE["eye"])[:, ::-1]
    if left is not None and right is not None:
        x = _unit(left - right)
        if len(eyes) > 1000:
            one, other = (eyes[side].mean(0) for side in (eyes[:, 0] > origin[0], eyes[:, 0] <= origin[0]))
            x = _unit(x + _unit(one - other))
    stem = centre("brain stem")
    if stem is not None and len(eyes) > 1000:
        y = stem - eyes.mean(0)
    y = _unit(y - (y @ x) * x)
    up = np.cross(x, y) * -1.0  # z-down voxels: right-handed in (x, y, z-down), so up is minus the cross product
    return np.stack([x, y, up]), origin


def _unit(v: np.ndarray) -> np.ndarray:
    found: np.ndarray = v / np.linalg.norm(v)
    return found
