"""Find the CT slices among files: read DICOM headers only, and sort what is found into series.

What is no CT slice is listed with the reason, and so is a file that is cut: uncompressed pixels are checked to be all
there, compressed ones to end where the file says, without reading either.
"""

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from slicewise.io.files import Files, Skipped, files_below, kind_of
from slicewise.io.provenance import REAL_FRAME
from slicewise.volume import Acquisition

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = (CT_IMAGE + ".1", CT_IMAGE + ".2")
DICOMDIR = "1.2.840.10008.1.3.10"
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")

# Pixels a side beyond which a header is taken to be garbled.
MAX_SIDE = 8192
# How far directions and pixel spacings of one volume's slices may differ: scanners and converters round.
SAME_DIRECTION_DEG = 0.5
SAME_SPACING_MM = 1e-3
# A minority of so few images, in another geometry, under one series UID is a picture put beside the slices.
STRAY_IMAGES = 2
# Words that stand where a Patient's Name was, or name no patient.
PLACEHOLDER = re.compile(
    r"anon\w*|de|deident\w*|removed|synthetic|phantom|unknown|none|no|test|x+|patient|subject|subj|sub", re.I
)


@dataclass(frozen=True)
class Pixels:
    """How the pixels of a file are stored (PS3.3 C.7.6.3) and where: `offset` is the byte at which uncompressed pixels
    begin, -1 where they must be decoded by the transfer `syntax`."""

    rows: int
    columns: int
    bits_stored: int
    high_bit: int
    signed: bool
    big_endian: bool
    offset: int
    padding: tuple[int, int] | None
    syntax: str


@dataclass(frozen=True)
class Slice:
    """One slice to be: a file, or one frame of a multi-frame file. `position`, `orientation` (Image Orientation
    (Patient)) and `spacing` (rows, columns) in LPS mm; HU = slope x stored + intercept; `uid` is the SOP Instance UID,
    `synthetic` what the file says of itself (Synthetic Data, 0008,001C: "YES", "NO" or "")."""

    path: str
    frame: int
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    slope: float
    intercept: float
    pixels: Pixels
    uid: str = ""
    synthetic: str = ""


@dataclass(frozen=True)
class Series:
    """Slices that belong together, not yet sorted. `problem`: why no volume can be made of them, where that is known
    already. `notes`: what is peculiar about them."""

    acquisition: Acquisition
    slices: tuple[Slice, ...]
    problem: str = ""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder of the series and its description, for messages."""
        text = self.acquisition.series_description or self.acquisition.series_uid[-16:]
        return f"{self.acquisition.source} ({text})"


@dataclass(frozen=True)
class Scan:
    """What lies below a folder: CT series, what was left out and why, and how many other files, by the end of their
    names."""

    series: tuple[Series, ...]
    skipped: tuple[Skipped, ...]
    others: Mapping[str, int] = field(default_factory=dict)


class _Unfit(Exception):
    """A file that is no CT slice; the message is the reason."""

    def __init__(self, reason: str, damaged: bool = False) -> None:
        # A reason can quote a garbled header: one line of it is enough.
        super().__init__(" ".join("".join(c if c.isprintable() else " " for c in reason).split())[:200])
        self.damaged = damaged


# --- Scanning -------------------------------------------------------------------------------------------------------


def scan(source: Path | str | Iterable[Path | str] | Files, map_headers: Callable[..., Iterable[Any]] = map) -> Scan:
    """Sort the DICOM files below a folder (or in a list) into CT series; reads headers only.

    Files that are not DICOM at all are counted in `others`, unless their name says .dcm; so is a DICOMDIR. Everything
    else that is not a CT slice is in `skipped`, files of one series and reason in one entry. `map_headers` may be a
    pool's map (its function and arguments pickle).
    """
    if not isinstance(source, Files):
        one = isinstance(source, str | Path)
        source = files_below([source]) if one else Files([os.fspath(path) for path in source])  # type: ignore
    groups: dict[tuple[str, str], list[tuple[Acquisition, list[Slice], tuple[str, ...]]]] = defaultdict(list)
    skipped, others = list(source.skipped), Counter[str]()
    for path, found in zip(source.paths, map_headers(read_header, source.paths)):
        if isinstance(found, Skipped):
            skipped.append(found)
        elif found is None:
            others[kind_of(path)] += 1
        else:
            groups[found[0].study_uid, found[0].series_uid].append(found)
    damaged = {entry.series_uid: entry for entry in reversed(skipped) if entry.damaged and entry.series_uid}
    series = []
    for (_, uid), members in groups.items():
        made, strays = _make_series(members)
        if uid in damaged:
            made = replace(made, problem=f"{damaged[uid].source}: {damaged[uid].reason}")
        named = replace(made.acquisition, source=source.named(made.acquisition.source))
        series.append(replace(made, acquisition=named, problem=source.named(made.problem)))
        skipped += strays
    series.sort(key=lambda s: (s.acquisition.source, s.slices[0].path))
    skipped = [replace(e, source=source.named(e.source), reason=source.named(e.reason)) for e in _gathered(skipped)]
    return Scan(tuple(series), tuple(skipped), others)


def _gathered(skipped: Iterable[Skipped]) -> Iterator[Skipped]:
    """Entries of one series with one reason as one, of their folder."""
    alike: dict[tuple[object, ...], list[Skipped]] = defaultdict(list)
    for number, entry in enumerate(skipped):
        alike[(entry.series_uid, entry.reason) if entry.series_uid else (number,)].append(entry)
    for entries in alike.values():
        if len(entries) == 1:
            yield entries[0]
        else:
            folders = sorted({os.path.dirname(e.source) or "." for e in entries})
            alike_given = len({os.path.isabs(folder) for folder in folders}) == 1
            folder = os.path.commonpath(folders) if alike_given else folders[0]
            yield replace(entries[0], source=folder or ".", reason=f"{entries[0].reason} ({len(entries)} files)")


def _make_series(members: list[tuple[Acquisition, list[Slice], tuple[str, ...]]]) -> tuple[Series, list[Skipped]]:
    """One series of all files under one UID; strays in another geometry are left out, real mixtures are a problem."""
    slices = [s for _, found, _ in members for s in found]
    named = any(member.names_patient for member, _, _ in members)
    synthetic = any(member.synthetic for member, _, _ in members)
    acquisition = replace(members[0][0], names_patient=named, synthetic=synthetic)
    patients = {member.patient_id for member, _, _ in members}
    kinds = sorted(_kinds(slices), key=len, reverse=True)
    main, count = kinds[0], len(kinds[0])
    strays: list[Skipped] = []
    problem = ""
    if len(patients) > 1:
        problem = f"{len(patients)} patients share one series UID; sort the files by patient first"
    elif len(kinds) > 1 and len(slices) - count <= STRAY_IMAGES and count > 4 * STRAY_IMAGES:
        strays = [
            Skipped(s.path, f"another geometry ({_kind_text(s)}) than the {count} slices of its series")
            for kind in kinds[1:]
            for s in kind
        ]
        slices = main
    elif len(kinds) > 1:
        mixed = "; ".join(f"{len(kind)} slices of {_kind_text(kind[0])}" for kind in kinds[:3])
        problem = f"two series are mixed under one series UID ({mixed}); sort them into separate folders and UIDs"
    folder = os.path.dirname(slices[0].path) if len({s.path for s in slices}) > 1 else slices[0].path
    notes = tuple(dict.fromkeys(note for _, _, found in members for note in found))
    made = Series(replace(acquisition, source=folder), tuple(slices), "", notes)
    return (replace(made, problem=f"{made.name}: {problem}") if problem else made), strays


def _kinds(slices: Iterable[Slice]) -> list[list[Slice]]:
    """Slices by what those of one volume share: number and spacing of pixels, and directions within
    `SAME_DIRECTION_DEG` of those of the first of the kind."""
    kinds: list[list[Slice]] = []
    for s in slices:
        for kind in kinds:
            if _is_alike(s, kind[0]):
                kind.append(s)
                break
        else:
            kinds.append([s])
    return kinds


def _is_alike(a: Slice, b: Slice) -> bool:
    if (a.pixels.rows, a.pixels.columns) != (b.pixels.rows, b.pixels.columns):
        return False
    if a.orientation == b.orientation and a.spacing == b.spacing:
        return True
    if max(abs(x - y) for x, y in zip(a.spacing, b.spacing)) > SAME_SPACING_MM:
        return False
    # The chord of a small angle between unit vectors is the angle.
    chords = (math.dist(a.orientation[i : i + 3], b.orientation[i : i + 3]) for i in (0, 3))
    return max(chords) <= math.radians(SAME_DIRECTION_DEG)


def _kind_text(s: Slice) -> str:
    directions = ", ".join(f"{v:g}" for v in s.orientation)
    pixels, spacing = f"{s.pixels.rows}x{s.pixels.columns}", f"{s.spacing[0]:g}x{s.spacing[1]:g}"
    return f"{pixels} pixels at {spacing} mm, orientation {directions}"


# --- Headers --------------------------------------------------------------------------------------------------------


def read_header(path: str) -> tuple[Acquisition, list[Slice], tuple[str, ...]] | Skipped | None:
    """The slices in one file with what is known of their acquisition; a `Skipped` where they are no CT slices; None
    where the file is not DICOM (or a DICOMDIR)."""
    uid = ""
    try:
        with open(path, "rb") as stream:
            if not _looks_like_dicom(stream):
                if path.lower().endswith(DICOM_SUFFIXES):
                    return Skipped(path, "not a DICOM file, despite its name", damaged=True)
                return None
            try:  # all tags: picking some takes pydicom longer than keeping all unparsed
                header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
            except Exception as error:  # pydicom raises many kinds on a header that is cut or garbled
                raise _Unfit(f"damaged header ({error})", damaged=True) from error
            try:
                uid = _text(header, "SeriesInstanceUID")
                kinds = (_text(header, "SOPClassUID"), header.file_meta.get("MediaStorageSOPClassUID"))
                if DICOMDIR in kinds:
                    return None
                _check_kind(header)
                pixels = _pixels(header, stream)
                slices = list(_slices(path, header, pixels))
                acquisition, notes = _acquisition(header), _notes(header)
            except (_Unfit, OSError):
                raise
            except Exception as error:  # elements are parsed only now, and pydicom raises as many kinds
                raise _Unfit(f"damaged header ({error})", damaged=True) from error
    except _Unfit as unfit:
        return Skipped(path, str(unfit), unfit.damaged, uid)
    except OSError as error:
        return Skipped(path, f"cannot be read: {os.strerror(error.errno or 0)}", damaged=True)
    if not slices:
        return Skipped(path, "localiser", series_uid=uid)
    return acquisition, slices, notes


def _notes(header: Dataset) -> tuple[str, ...]:
    """What a user should know of the HU of an image."""
    notes: tuple[str, ...] = ()
    if _text(header, "LossyImageCompression") == "01":
        notes += ("lossy compression: HU are approximate",)
    if _text(header, "RescaleType") == "US":
        notes += ("Rescale Type is US (unspecified), taken as HU",)
    return notes


def _looks_like_dicom(stream: BinaryIO) -> bool:
    """The DICM mark, or, as in files from before 1993, a first element of group 0002 or 0008."""
    start = stream.read(132)
    stream.seek(0)
    return start[128:] == b"DICM" or (len(start) == 132 and start[:2] in (b"\x08\x00", b"\x02\x00") and start[3] == 0)


def _check_kind(header: Dataset) -> None:
    """Raise `_Unfit` unless the file is a CT image in HU, by its header."""
    kind = _text(header, "SOPClassUID")
    modality = _text(header, "Modality")
    if "Rows" not in header and (kind == CT_IMAGE or kind in ENHANCED_CT):
        raise _Unfit("no image in it: Rows and pixel data missing", damaged=True)
    if "Rows" not in header:
        raise _Unfit("no image in it" + (f" ({UID(kind).name})" if kind else ""))
    if _whole(header, "SamplesPerPixel", 1) != 1:
        raise _Unfit(f"colour image ({_text(header, 'PhotometricInterpretation')}), not CT values")
    if modality == "PT":
        raise _Unfit(f"PET, not CT: its values are in {_text(header, 'Units') or 'other units'}")
    if modality not in ("CT", "") or (kind and "MR Image" in UID(kind).name):
        raise _Unfit(f"{modality or 'MR'}, not CT")
    if kind and kind != CT_IMAGE and kind not in ENHANCED_CT:
        raise _Unfit(f"{UID(kind).name}, not CT values")
    if not kind and not modality:
        raise _Unfit("neither SOP Class nor Modality says that it is CT")
    bits, stored = _whole(header, "BitsAllocated", 16), _whole(header, "BitsStored", 16)
    if bits != 16 or not 8 < stored <= 16:
        raise _Unfit(f"{min(bits, stored)}-bit pixels, not CT values of 10 to 16 bits")
    if "ModalityLUTSequence" in header:
        raise _Unfit("pixels are mapped by a Modality LUT, not by rescale slope and intercept")


def _pixels(header: Dataset, stream: BinaryIO) -> Pixels:
    """How and where the pixels are; checks that uncompressed ones are all there, without reading them."""
    meta_syntax = header.file_meta.get("TransferSyntaxUID")
    syntax = UID(meta_syntax) if meta_syntax else ImplicitVRLittleEndian
    rows, columns = _whole(header, "Rows", 0), _whole(header, "Columns", 0)
    frames = _whole(header, "NumberOfFrames", 1)
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE and frames > 0):
        raise _Unfit(f"{rows}x{columns} pixels in {frames} frames are implausible", damaged=True)
    bits_stored = _whole(header, "BitsStored", 16)
    high_bit = _whole(header, "HighBit", bits_stored - 1)
    if not bits_stored <= high_bit + 1 <= 16:
        raise _Unfit(f"High Bit {high_bit} does not match {bits_stored} Bits Stored", damaged=True)
    signed = _whole(header, "PixelRepresentation", 0) == 1
    big_endian = syntax == ExplicitVRBigEndian
    offset = -1
    if syntax != DeflatedExplicitVRLittleEndian:
        order = "big" if big_endian else "little"
        start = stream.tell()
        head = stream.read(12)
        tag = int.from_bytes(head[0:2], order), int.from_bytes(head[2:4], order)  # type: ignore[arg-type]
        if tag != (0x7FE0, 0x0010):
            raise _Unfit("pixel data missing", damaged=True)
        # Implicit VR has the length here, which is even; these letters would make an odd one.
        long_form = head[4:6] in (b"OW", b"OB", b"UN")
        stated = int.from_bytes(head[8:12] if long_form else head[4:8], order)  # type: ignore[arg-type]
        if syntax.is_compressed:
            _check_fragments(stream)
        else:
            offset = start + (12 if long_form else 8)
            due, there = rows * columns * frames * 2, os.fstat(stream.fileno()).st_size - offset
            if min(stated, there) < due:
                found = max(min(stated, there), 0)
                raise _Unfit(f"truncated: {found} bytes of pixels, expected {due}", damaged=True)
    padding = None
    if (value := _whole(header, "PixelPaddingValue", None, signed)) is not None:
        limit = _whole(header, "PixelPaddingRangeLimit", value, signed)
        padding = (min(value, limit), max(value, limit))
    return Pixels(
        rows=rows,
        columns=columns,
        bits_stored=bits_stored,
        high_bit=high_bit,
        signed=signed,
        big_endian=big_endian,
        offset=offset,
        padding=padding,
        syntax=str(syntax),
    )


def _check_fragments(stream: BinaryIO) -> None:
    """Raise `_Unfit` where a compressed pixel element (PS3.5 A.4) ends within a fragment: decoders can take seconds to
    notice. The stream stands at the first item."""
    size = os.fstat(stream.fileno()).st_size
    place, fragments = stream.tell(), 0
    while place + 8 <= size:
        stream.seek(place)
        item = stream.read(8)
        if item[:4] != b"\xfe\xff\x00\xe0":
            break
        place += 8 + int.from_bytes(item[4:], "little")
        fragments += 1
    if place > size or fragments < 2:
        raise _Unfit(f"truncated: its compressed pixels end at byte {place}, the file at {size}", damaged=True)


def _slices(path: str, header: Dataset, pixels: Pixels) -> Iterator[Slice]:
    """The slices in one file: one, or one a frame (Enhanced CT, PS3.3 C.7.6.16)."""
    enhanced = "PerFrameFunctionalGroupsSequence" in header or "SharedFunctionalGroupsSequence" in header
    if not enhanced and _whole(header, "NumberOfFrames", 1) > 1:
        raise _Unfit("several frames without functional groups: their positions are unknown")
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for index in range(_whole(header, "NumberOfFrames", 1)):
        frame = per_frame[index] if index < len(per_frame) else Dataset()

        def item(macro: str, frame: Dataset = frame) -> Dataset:
            if not enhanced:
                return header
            sequence = frame.get(macro) or shared.get(macro)
            return sequence[0] if sequence else Dataset()

        image_type = _text(item("CTImageFrameTypeSequence"), "FrameType") or _text(header, "ImageType")
        if {"LOCALIZER", "SCOUT"} & set(image_type.upper().split("\\")):
            continue
        transform = item("PixelValueTransformationSequence")
        unit = _text(transform, "RescaleType").upper() or "HU"
        if unit not in ("HU", "US"):
            raise _Unfit(f"values are in {unit} (Rescale Type), not HU")
        slope, intercept = (_needed(transform, name, 1)[0] for name in ("RescaleSlope", "RescaleIntercept"))
        if slope == 0:
            raise _Unfit("Rescale Slope (0028,1053) is 0, so the values are not in HU")
        position = _needed(item("PlanePositionSequence"), "ImagePositionPatient", 3)
        orientation = _needed(item("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
        spacing = _needed(item("PixelMeasuresSequence"), "PixelSpacing", 2)
        (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
        if max(abs(a * a + b * b + c * c - 1), abs(d * d + e * e + f * f - 1), abs(a * d + b * e + c * f)) > 0.01:
            raise _Unfit("Image Orientation is not two unit vectors at right angles")
        if not 0 < min(spacing) <= max(spacing) < 100:
            raise _Unfit(f"Pixel Spacing {spacing} mm is implausible")
        is_real = enhanced and _text(item("FrameContentSequence"), "FrameComments") == REAL_FRAME
        yield Slice(
            path=path,
            frame=index,
            position=(position[0], position[1], position[2]),
            orientation=tuple(orientation),
            spacing=(spacing[0], spacing[1]),
            slope=slope,
            intercept=intercept,
            pixels=pixels,
            uid=_text(header, "SOPInstanceUID"),
            synthetic="NO" if is_real else _text(header, "SyntheticData"),
        )


def _acquisition(header: Dataset) -> Acquisition:
    def one(name: str) -> float | None:
        return next(iter(_numbers(header, name, 1)), None)

    # Only these may hold letters beyond ASCII, which take pydicom's decoding.
    patient = str(header.get("PatientID") or "").strip()
    description = str(header.get("SeriesDescription") or "").strip()
    return Acquisition(
        # The issuer is left out: it comes and goes between studies of one patient, who must stay one in a split.
        patient_id=patient or f"study {_text(header, 'StudyInstanceUID')}",
        study_uid=_text(header, "StudyInstanceUID"),
        series_uid=_text(header, "SeriesInstanceUID"),
        frame_of_reference_uid=_text(header, "FrameOfReferenceUID"),
        series_description=description,
        manufacturer=_text(header, "Manufacturer"),
        model=_text(header, "ManufacturerModelName"),
        kernel=_text(header, "ConvolutionKernel").replace("\\", "/"),
        kvp=one("KVP"),
        slice_thickness_mm=one("SliceThickness"),
        gantry_tilt_deg=one("GantryDetectorTilt"),
        names_patient=_names_patient(header),
        synthetic=_text(header, "SyntheticData") == "YES",
    )


def _names_patient(header: Dataset) -> bool:
    """Whether the header holds a Patient's Name: neither said to be removed or synthetic, nor the Patient ID again, nor
    a word that stands where a name was."""
    if "YES" in (_text(header, "PatientIdentityRemoved"), _text(header, "SyntheticData")):
        return False
    name = _text(header, "PatientName")
    words = re.findall(r"[^\W\d_]+", name)
    return bool(words) and name != _text(header, "PatientID") and not PLACEHOLDER.fullmatch(words[0])


# Elements are taken as bytes, unparsed: pydicom's own conversion costs more than all the rest of a header.


def _element(header: Dataset, name: str) -> Any:
    tag = _tag(name)
    return header.get_item(tag) if tag in header else None


@lru_cache(maxsize=256)
def _tag(name: str) -> BaseTag:
    number = tag_for_keyword(name)
    assert number is not None, name
    return BaseTag(number)


def _text(header: Dataset, name: str) -> str:
    """The text of an element, several values joined by backslashes; empty where it is absent."""
    element = _element(header, name)
    value = None if element is None else element.value
    if isinstance(value, bytes):
        return value.decode("latin-1").strip(" \0")
    if value is None or isinstance(value, str):
        return (value or "").strip()
    return "\\".join(map(str, value)) if isinstance(value, MultiValue | list | tuple) else str(value)


def _numbers(header: Dataset, name: str, count: int) -> list[float]:
    """The numbers of a decimal string; empty where there are fewer than `count`, or one is none or not finite."""
    try:
        values = [float(part) for part in _text(header, name).split("\\")[:count]]
    except ValueError:
        return []
    return values if len(values) == count and all(map(math.isfinite, values)) else []


_WHY_NEEDED = {"RescaleSlope": "values are not in HU", "RescaleIntercept": "values are not in HU"}


def _needed(header: Dataset, name: str, count: int) -> list[float]:
    """As `_numbers`, but raises `_Unfit` with tag and value where they are not all there."""
    if values := _numbers(header, name, count):
        return values
    tag, text = _tag(name), _text(header, name)
    what = f"{dictionary_description(tag)} ({tag.group:04X},{tag.element:04X})"
    if not text:
        raise _Unfit(f"{what} is missing, so the {_WHY_NEEDED.get(name, 'slice has no position')}")
    kind = "a number" if count == 1 else f"{count} numbers"
    comma = "; numbers need a decimal point, not a comma: fix the files" if "," in text else ""
    raise _Unfit(f"{what} is '{text}', not {kind}{comma}", damaged=True)


def _whole(header: Dataset, name: str, default: Any, signed: bool = False) -> Any:
    """A whole number, binary or text; a 16-bit one is read with the given sign, whatever its VR."""
    element = _element(header, name)
    value = None if element is None else element.value
    if value is None or value in (b"", ""):
        return default
    if isinstance(value, bytes) and element.VR not in ("IS", "DS") and len(value) == 2 and name != "NumberOfFrames":
        return int.from_bytes(value, "little" if element.is_little_endian else "big", signed=signed)
    number = int(_text(header, name).split("\\")[0])
    return number - 65536 if signed and number > 32767 else number % 65536 if not signed and number < 0 else number
