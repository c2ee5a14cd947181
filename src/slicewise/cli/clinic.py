"""Commands that deal in DICOM with others: `push`, `pull`, `deidentify` and `segmentation`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from slicewise.cli.output import print_json, print_notes, print_skipped
from slicewise.cli.parse import PLAIN
from slicewise.io.peer import PeerSettings, Query


@dataclass(frozen=True, kw_only=True)
class Push:
    """Send DICOM files to a PACS. Files that it already holds are not sent again; run the command again to resume an
    interrupted transfer."""

    paths: Annotated[tuple[Path, ...], Positional]
    """Runs of slicewise generate, DICOM folders or files."""
    to: str
    """Destination: https://HOST/PATH (DICOMweb) or dicom://AE-TITLE@HOST:PORT (DIMSE; dicoms:// over TLS)."""
    dry_run: bool = False
    """Only ask what the PACS already holds; send nothing."""
    json: bool = False
    """Print the report as JSON."""
    settings: Annotated[PeerSettings, PLAIN] = field(default_factory=PeerSettings)

    def run(self) -> None:
        from slicewise.io.pacs import push

        with _bar("push") as progress:
            report = push(self.paths, self.to, self.settings, dry_run=self.dry_run, progress=progress)
        if self.json:
            print_json({"to": self.to, "dry_run": self.dry_run, **asdict(report)})
            return
        print_skipped(self, report.skipped)
        verb = "would send" if self.dry_run else "sent"
        print(f"{verb} {len(report.sent)} images, {len(report.there_before)} already there")
        if not report.can_be_asked:
            print("note      the peer does not answer queries, so images that it already holds were sent again")


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Fetch series from a PACS into a folder that prepare reads. Files that already exist are not fetched again; run
    the command again to resume an interrupted transfer."""

    source: Annotated[str, Positional]
    """Source: https://HOST/PATH (DICOMweb) or dicom://AE-TITLE@HOST:PORT (DIMSE; dicoms:// over TLS)."""
    out: Path
    """Folder to write to: OUT/STUDY-UID/SERIES-UID/SOP-UID.dcm."""
    query: Annotated[Query, PLAIN]
    deidentify: bool = False
    """De-identify every image before it is written (see slicewise deidentify)."""
    dry_run: bool = False
    """Only list what would be fetched."""
    json: bool = False
    """Print the series that match, and what was fetched, as JSON."""
    settings: Annotated[PeerSettings, PLAIN] = field(default_factory=PeerSettings)

    def run(self) -> None:
        from slicewise.io.pacs import pull

        with _bar("pull") as progress:
            report = pull(
                self.source,
                self.query,
                self.out,
                self.settings,
                deidentify=self.deidentify,
                dry_run=self.dry_run,
                progress=progress,
            )
        if self.json:
            print_json({"source": self.source, "dry_run": self.dry_run, **asdict(report)})
            return
        if self.dry_run:
            for series in report.series:
                images = "" if series.images is None else f", {series.images} images"
                print(f"would pull  {series.modality} series {series.series} of study {series.study}{images}")
            return
        print(f"{len(report.folders)} series in {self.out}: {report.fetched} images fetched, ", end="")
        print(f"{report.there_before} already there")


@dataclass(frozen=True, kw_only=True)
class Deidentify:
    """Copy CT images without anything that identifies the patient: the basic profile of DICOM PS3.15, with new UIDs.
    Run it again to resume, or to add more images of the same patients."""

    paths: Annotated[tuple[Path, ...], Positional]
    """DICOM folders or files."""
    out: Path
    """Folder to write to; do not share the secret key in it, .deidentify-key."""
    deface: bool = False
    """Set the face to air: in slices through the orbits and below, everything in front."""
    json: bool = False
    """Print the report as JSON."""

    def run(self) -> None:
        from slicewise.data.deface import face_mask
        from slicewise.io.deidentify import KEY_FILE, REPORT_FILE, deidentify_files

        with _bar("deidentify") as progress:
            report = deidentify_files(self.paths, self.out, progress, face_mask if self.deface else None)
        if self.json:
            print_json({"out": self.out, **asdict(report)})
            return
        print_skipped(self, report.skipped)
        print_notes(self, "warning", report.warnings)
        print(
            f"wrote {report.written} images, {report.there_before} already there; {len(report.attributes)} attributes"
        )
        print(f"were removed: see {self.out / REPORT_FILE}. Keep {self.out / KEY_FILE} to yourself.")


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Write a label map as a DICOM segmentation of the CT series that it belongs to."""

    labels: Annotated[Path, Positional]
    """NIfTI label map, as slicewise phantom writes it."""
    series: Annotated[Path, Positional]
    """Folder of the CT series."""
    out: Path
    """DICOM file to write."""
    names: Path | None = None
    """JSON file {name: label}; by default labels.json beside the label map."""

    def run(self) -> None:
        from slicewise.io.dicom_seg import write_segmentation

        segments = write_segmentation(self.labels, self.series, self.out, self.names)
        print(f"wrote {self.out}, {len(segments)} segments: {', '.join(segments)}")


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Images done and to do, on stderr."""
    from slicewise.progress import counting_bar

    with counting_bar(True, transient=True) as bar:
        task = bar.add_task(f"{what}, images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
