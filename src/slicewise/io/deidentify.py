"""Take out of DICOM headers what says who the patient is: Basic Application Level Confidentiality Profile, PS3.15 E.

Which attribute is removed, emptied or replaced comes from table E.1-1 as dicom-anonymizer holds it. UIDs and the
Patient ID are replaced through a keyed hash (HMAC-SHA256): who holds the key gets the same ones again, so that series
and patients stay together between runs, and nobody else finds the way back. Pixels are left as they are, which is why
images with burned-in annotation are left out.
"""

import hashlib
import hmac
import json
import os
import secrets
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import UID

from slicewise.errors import UserError, output_errors
from slicewise.io.atomic import atomic_file
from slicewise.io.dicom_scan import read_header
from slicewise.io.files import LeftOut, files_below
from slicewise.io.nifti import is_nifti

KEY_FILE = ".deidentify-key"  # hidden, so that no scan reads it; not to be given away with the data
REPORT_FILE = "deidentified.json"
# The edition of table E.1-1.
EDITION = "2026c"
# Dummies (action D), by value representation; a text else.
_DUMMIES: dict[str, object] = {
    "DA": "19000101", "TM": "000000", "DT": "19000101000000", "AS": "000Y", "DS": "0", "IS": "0", "UR": "removed:",
    **dict.fromkeys(("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"), 0),
    **dict.fromkeys(("OB", "OW", "UN", "OF", "OD", "OL", "OV"), b"\0\0"),
}  # fmt: skip


@dataclass(frozen=True)
class DeidentifyReport:
    """What a run did: files written and there before, how many files each attribute was taken out of (by keyword, in
    all runs into the folder), and what was left out and why."""

    written: int
    there_before: int
    attributes: dict[str, int]
    left_out: tuple[LeftOut, ...]


def deidentify_files(
    paths: Iterable[Path | str], out: Path | str, progress: Callable[[int, int], None] = lambda done, total: None
) -> DeidentifyReport:
    """De-identify every CT image below the paths into `out/PATIENT/STUDY/SERIES/INSTANCE.dcm`, all of them new names.

    The key is made on the first run, in `out/.deidentify-key`; with it, a later run goes on and passes over what is
    there. `out/deidentified.json` counts what was taken out; it holds no value and no name of a file.

    Raises `UserError` where there is no CT image, and where `out` cannot be written; whole files stay.
    """
    out = Path(out)
    files = files_below(paths)
    with output_errors(out):
        key = read_key(out)
    attributes, left_out, written, before = _counted(out), files.left_out, 0, 0
    for number, file in enumerate(files.paths):
        progress(number, len(files.paths))
        if is_nifti(file):
            reason = "NIfTI is not de-identified: see to its name, its header's texts and its JSON file yourself"
            left_out.append(LeftOut(file, reason))
            continue
        found = read_header(file)
        if found is None:
            continue
        if isinstance(found, LeftOut):
            left_out.append(found)
            continue
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
            if str(header.get("BurnedInAnnotation", "")).upper() == "YES":
                left_out.append(LeftOut(file, "annotation is burned into the pixels, which is not cleaned"))
                continue
            target = out / _place(header, key)
            if target.is_file():
                before += 1
                continue
            ds, stream = pydicom.dcmread(file), BytesIO()
            touched = deidentify(ds, key)
            ds.save_as(stream, enforce_file_format=True)
        except UserError:
            raise
        except Exception as error:  # pydicom raises many kinds on elements that are garbled
            left_out.append(LeftOut(file, f"damaged header ({type(error).__name__})", damaged=True))
            continue
        attributes.update(touched)
        with output_errors(out):
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target) as file_stream:
                file_stream.write(stream.getvalue())
        written += 1
    if not written and not before:
        why = f"; {left_out[0].source}: {left_out[0].reason}" if left_out else ""
        raise UserError(f"{', '.join(map(str, paths))}: no CT image to de-identify here{why}")
    # Of a reason, not what stands in brackets: it could quote a header.
    reasons = Counter(entry.reason.partition("(")[0].strip() for entry in left_out)
    _write_report(out, attributes, written + before, reasons)
    return DeidentifyReport(written, before, dict(attributes), tuple(left_out))


def _place(header: Dataset, key: bytes) -> Path:
    """PATIENT/STUDY/SERIES/INSTANCE.dcm of an image, all of them new names."""
    patient = pseudonym(str(header.get("PatientID") or header.get("StudyInstanceUID", "")), key)
    uids = (header.get(k, "") for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
    study, series, instance = (new_uid(uid, key) for uid in uids)
    return Path(patient, study, series, f"{instance}.dcm")


def deidentify(ds: Dataset, key: bytes) -> set[str]:
    """Apply the profile to a data set in place, in sequences too; the keywords of what was taken out of it.

    Private attributes go, and so does every person name that the table does not know. Afterwards Patient Identity
    Removed (0012,0062) is YES, with the method and its code (DCM 113100). The file meta information is made anew.
    """
    patient = pseudonym(str(ds.get("PatientID") or ds.get("StudyInstanceUID", "")), key)
    touched: set[str] = set()
    _clean(ds, key, touched)
    ds.PatientID, ds.PatientName = patient, patient
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = f"slicewise, PS3.15 table E.1-1 {EDITION}"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    ds.DeidentificationMethodCodeSequence = [code]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = ds.file_meta.TransferSyntaxUID
    meta.ImplementationVersionName = "SLICEWISE"
    ds.file_meta, ds.preamble = meta, b"\0" * 128
    return touched


def pseudonym(patient_id: str, key: bytes) -> str:
    """The Patient ID that stands for another."""
    return "ANON-" + hmac.new(key, f"patient {patient_id.strip()}".encode(), hashlib.sha256).hexdigest()[:16]


def new_uid(uid: str, key: bytes) -> UID:
    """The UID that stands for another (PS3.5 B.2: 2.25. and 128 bits)."""
    digest = hmac.new(key, f"uid {uid}".encode(), hashlib.sha256).digest()
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}")


def read_key(out: Path) -> bytes:
    """The key of a folder, made and kept for its owner alone where there is none."""
    file = out / KEY_FILE
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
    try:
        return bytes.fromhex(file.read_text().strip())
    except ValueError:
        raise UserError(f"{file}: damaged; restore it, or de-identify into another folder") from None


@cache
def _actions() -> dict[tuple[int, int], str]:
    """The profile's action by tag: one of X (remove), Z (empty), D (dummy), U (new UID). Where the table leaves a
    choice by IOD (X/Z, X/D, Z/D, …) the one that keeps a valid image of any IOD is taken."""
    try:
        from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'slicewise[clinic]'") from None
    table = dicom_anonymization_database_selector(f"dicomfields_{EDITION}")
    groups = {"X": ("X",), "Z": ("Z", "X_Z", "X_Z_D"), "D": ("D", "Z_D", "X_D"), "U": ("U", "X_Z_U_STAR")}
    return {
        tag[:2]: action
        for action, names in groups.items()
        for name in names
        for tag in table[f"{name}_TAGS"]
        if len(tag) == 2
    }


def _clean(ds: Dataset, key: bytes, touched: set[str]) -> None:
    for element in list(ds):
        tag = element.tag
        action = _actions().get((tag.group, tag.element), "")
        # Repeating groups of the table: curves (50xx), overlay data and comments (60xx).
        is_curve_or_overlay = 0x5000 <= tag.group <= 0x50FF or 0x6000 <= tag.group <= 0x60FF
        if tag.is_private or is_curve_or_overlay or action == "X":
            touched.add(element.keyword or ("private attributes" if tag.is_private else "curves and overlays"))
            del ds[tag]
        elif element.VR == "SQ" and action in ("", "U"):
            for item in element.value:
                _clean(item, key, touched)
        elif action == "U":
            touched.add(element.keyword)
            element.value = _each(element.value, lambda uid: new_uid(uid, key))
        elif action or element.VR == "PN":
            if not element.is_empty:
                touched.add(element.keyword)
                element.value = _dummy(element, key) if action == "D" else ([] if element.VR == "SQ" else None)


def _dummy(element: DataElement, key: bytes) -> object:
    if element.VR == "UI":
        return _each(element.value, lambda uid: new_uid(uid, key))
    return [] if element.VR == "SQ" else _DUMMIES.get(element.VR, "REMOVED")


def _each(value: object, change: Callable[[str], object]) -> object:
    """A change of one value or of each of several."""
    if isinstance(value, MultiValue):
        return [change(str(v)) for v in value]
    return change(str(value)) if value else value


def _counted(out: Path) -> Counter[str]:
    """The counts of earlier runs."""
    try:
        return Counter(json.loads((out / REPORT_FILE).read_text())["attributes"])
    except FileNotFoundError:
        return Counter()
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{out / REPORT_FILE}: damaged; remove it to count anew") from None


def _write_report(out: Path, attributes: Counter[str], files: int, left_out: Counter[str]) -> None:
    report = {
        "profile": f"Basic Application Level Confidentiality Profile, PS3.15 table E.1-1 {EDITION}",
        "files": files,
        "attributes": dict(attributes.most_common()),
        "left_out": dict(left_out.most_common()),
    }
    with output_errors(out), atomic_file(out / REPORT_FILE) as stream:
        stream.write((json.dumps(report, indent=2) + "\n").encode())
