"""Commands that look at and convert what there is: `info`, `view` and `export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from slicewise.cli.output import print_json, print_notes, print_skipped
from slicewise.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Info:
    """Describe a checkpoint, prepared store, run folder, DICOM folder or NIfTI file."""

    path: Annotated[Path, Positional]
    """File or folder."""
    json: bool = False
    """Print it as JSON."""

    def run(self) -> None:
        from slicewise.info import describe, facts

        found = facts(self.path)
        if self.json:
            print_json(found)
        else:
            print(describe(found))


@dataclass(frozen=True, kw_only=True)
class View:
    """View volumes in a browser on this machine: three planes and 3D, windows, HU, two volumes linked."""

    paths: Annotated[tuple[Path, ...], Positional]
    """DICOM folders, NIfTI files, prepared stores or runs of slicewise generate."""
    labels: tuple[Path, ...] = ()
    """DICOM segmentations or NIfTI label maps to overlay on the volumes that they belong to."""
    host: str = "127.0.0.1"
    """Address to bind to; other than 127.0.0.1 lets other machines in."""
    port: int = 0
    """Port to bind to; 0 picks a free one."""
    browser: bool = True
    """Open the page in a browser."""

    def run(self) -> None:
        import webbrowser

        from slicewise.viewer.app import viewer
        from slicewise.viewer.labels import read_labels
        from slicewise.viewer.server import address, listen, require_server, serve
        from slicewise.viewer.shelf import Shelf, entries

        require_server("view")
        found, skipped = entries(self.paths)
        print_skipped(self, skipped)
        shelf = Shelf(found, [read_labels(labels) for labels in self.labels])
        bound = listen(self.host, self.port)
        app, path = viewer(shelf, self.host)
        link = address(bound) + path
        print(f"{len(found)} volume{'s' if len(found) > 1 else ''} at {link}   (Ctrl-C ends it)", flush=True)
        if self.browser:
            webbrowser.open(link)
        serve(app, bound)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write any volume that slicewise reads in another format. HU, geometry and what the headers say about patient,
    study and origin are kept."""

    volume: Annotated[str, Positional]
    """DICOM folder, NIfTI file, or STORE:ID for a volume of a prepared store."""
    out: Path
    """A .nii, .nii.gz, .png or .dcm (Enhanced CT, multi-frame) file to write, or a new folder for a DICOM series."""
    patient_id: str = ""
    """Patient ID to write; by default the volume's. With a different one, nothing is written that leads back to the
    patient, the study or the images of the source."""
    series_uid: str = ""
    """UID of the series to read, if the folder holds several."""
    interpolate_missing: bool = False
    """Fill gaps of one or two missing slices, of the series or, with --slice-mm, of the new grid."""
    largest_part: bool = False
    """From a scan with wider gaps, use the longest part without one."""
    slice_mm: float = 0.0
    """Resample an unevenly spaced or tilted scan to even axial slices this far apart, in mm (0: leave as it is)."""
    keep_tilt: bool = False
    """Keep resampled slices in the gantry's plane instead of upright."""
    syntax: str = "uncompressed"
    """DICOM transfer syntax: uncompressed, jpeg-ls, jpeg-2000 or rle (all lossless)."""

    def run(self) -> None:
        from slicewise.data.resample import Grid, resample_volume, shear_note
        from slicewise.export import check_target, write_volume
        from slicewise.io.archive import read_volume
        from slicewise.io.folders import is_store
        from slicewise.io.provenance import RESAMPLED, Step

        store, _, name = self.volume.rpartition(":")
        if store and is_store(store):
            from slicewise.data.store import open_store

            held = open_store(Path(store))
            found = [r for r in held.records if r.id == name]
            if not found:
                raise UserError(f"{store}: no volume {name}; slicewise info {store} lists them")
            reading = held.reading(found[0])
        else:
            reading = read_volume(
                self.volume,
                series_uid=self.series_uid,
                interpolate_missing=self.interpolate_missing,
                largest_part=self.largest_part,
                grid_mm=self.slice_mm,
            )
        volume, source = reading.volume, reading.source
        check_target(self.out, self.patient_id, source)
        notes = list(reading.notes)
        if self.slice_mm:
            pixels = max(volume.hu.shape[1:])
            notes += [] if self.keep_tilt else filter(None, [shear_note(volume)])
            fov = pixels * min(volume.pixel_spacing)
            grid = Grid(pixels, fov, self.slice_mm, crop_air_above=False, keep_tilt=self.keep_tilt)
            volume = resample_volume(volume, grid)
            source = source.after(Step(f"resampled to even axial slices {self.slice_mm:g} mm apart", RESAMPLED))
        write_volume(volume, self.out, patient_id=self.patient_id, syntax=self.syntax, source=source)
        print_notes(self, "note", notes)
        print(f"wrote {self.out}")
