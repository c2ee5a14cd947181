"""The commands that deal in DICOM with others: `push`, `pull`, `deidentify` and `segmentation`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from slicewise.cli import parse
from slicewise.io import pacs
from slicewise.io.peer import PeerSettings, Query
from slicewise.progress import counting_bar


def push(argv: list[str]) -> None:
    """`slicewise push`."""

    @dataclass(frozen=True)
    class Push:
        """Send DICOM files to a PACS. What it holds already is not sent again; run it again to go on where it was cut.

        Attributes
        ----------
        paths : runs of slicewise generate, DICOM folders or files.
        to : https://HOST/PATH (DICOMweb) or dicom://AE-TITLE@HOST:PORT (DIMSE; dicoms:// over TLS).
        dry_run : ask what the PACS holds already, and send nothing.
        """

        paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
        to: str
        settings: Annotated[PeerSettings, tyro.conf.arg(name="")]
        dry_run: bool = False

    a = parse("push", Push, argv, settings=PeerSettings())
    with _bar("push") as progress:
        report = pacs.push(a.paths, a.to, a.settings, dry_run=a.dry_run, progress=progress)
    for left in report.left_out:
        print(f"left out  {left.source}: {left.reason}")
    verb = "would send" if a.dry_run else "sent"
    print(f"{verb} {len(report.sent)} images, {len(report.there_before)} were there")
    if not report.can_be_asked:
        print("note      the peer answers no queries, so what it holds already was sent again")


def pull(argv: list[str]) -> None:
    """`slicewise pull`."""

    @dataclass(frozen=True)
    class Pull:
        """Fetch series from a PACS into a folder that prepare reads. What is there already is not fetched again; run it
        again to go on where it was cut.

        Attributes
        ----------
        source : https://HOST/PATH (DICOMweb) or dicom://AE-TITLE@HOST:PORT (DIMSE; dicoms:// over TLS).
        out : folder to write to: OUT/STUDY-UID/SERIES-UID/SOP-UID.dcm.
        patient : Patient ID.
        study : Study Instance UID.
        series : Series Instance UID.
        date : study date YYYYMMDD, or a range YYYYMMDD-YYYYMMDD.
        modality : of the series; "" for all.
        deidentify : strip every image of what says who the patient is before it is written (see slicewise deidentify).
        dry_run : only list what would be fetched.
        """

        source: Annotated[str, tyro.conf.Positional]
        out: Path
        settings: Annotated[PeerSettings, tyro.conf.arg(name="")]
        patient: str = ""
        study: str = ""
        series: str = ""
        date: str = ""
        modality: str = "CT"
        deidentify: bool = False
        dry_run: bool = False

    a = parse("pull", Pull, argv, settings=PeerSettings())
    query = Query(a.patient, a.study, a.series, a.date, a.modality)
    with _bar("pull") as progress:
        report = pacs.pull(
            a.source, query, a.out, a.settings, deidentify=a.deidentify, dry_run=a.dry_run, progress=progress
        )
    if a.dry_run:
        for series in report.series:
            images = "" if series.images is None else f", {series.images} images"
            print(f"would pull  {series.modality} series {series.series} of study {series.study}{images}")
        return
    print(f"{len(report.folders)} series in {a.out}: {report.fetched} images fetched, {report.there_before} were there")


def deidentify(argv: list[str]) -> None:
    """`slicewise deidentify`."""
    from slicewise.data.deface import face_mask
    from slicewise.io.deidentify import KEY_FILE, REPORT_FILE, deidentify_files

    @dataclass(frozen=True)
    class Deidentify:
        """Copy CT images without what says who the patient is: the basic profile of DICOM PS3.15, with new UIDs. Run it
        again to go on, or to add more of the same patients.

        Attributes
        ----------
        paths : DICOM folders or files.
        out : folder to write to; the secret key in it, .deidentify-key, is not for giving away.
        deface : set the face to air: in slices through the orbits and below, all that lies in front.
        """

        paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
        out: Path
        deface: bool = False

    a = parse("deidentify", Deidentify, argv)
    with _bar("deidentify") as progress:
        report = deidentify_files(a.paths, a.out, progress, face_mask if a.deface else None)
    for left in report.left_out:
        print(f"left out  {left.source}: {left.reason}")
    for warning in report.warnings:
        print(f"warning   {warning}")
    print(f"wrote {report.written} images, {report.there_before} were there; {len(report.attributes)} attributes")
    print(f"were taken out: see {a.out / REPORT_FILE}. Keep {a.out / KEY_FILE} to yourself.")


def segmentation(argv: list[str]) -> None:
    """`slicewise segmentation`."""
    from slicewise.io.dicom_seg import write_segmentation

    @dataclass(frozen=True)
    class Segmentation:
        """Write a label map as a DICOM segmentation of the CT series that it belongs to.

        Attributes
        ----------
        labels : NIfTI label map, as slicewise phantom writes it.
        series : folder of the CT series.
        out : DICOM file to write.
        names : JSON file {name: label}; default: labels.json beside the label map.
        """

        labels: Annotated[Path, tyro.conf.Positional]
        series: Annotated[Path, tyro.conf.Positional]
        out: Path
        names: Path | None = None

    a = parse("segmentation", Segmentation, argv)
    segments = write_segmentation(a.labels, a.series, a.out, a.names)
    print(f"wrote {a.out}, {len(segments)} segments: {', '.join(segments)}")


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Images done and to do, on stderr."""
    with counting_bar(True, transient=True) as bar:
        task = bar.add_task(f"{what}, images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
