"""The commands that read and write single volumes: `calibrate`, `export` and `info`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from slicewise.cli import parse
from slicewise.errors import UserError


def calibrate(argv: list[str]) -> None:
    """`slicewise calibrate`."""
    from slicewise.calibrate import brain_shift, calibrate_volume, match_volume
    from slicewise.checkpoint import load_icnet
    from slicewise.export import check_target, write_volume
    from slicewise.io.archive import read_volume
    from slicewise.io.provenance import EDITED, Step
    from slicewise.release import ICNET

    @dataclass(frozen=True)
    class Calibrate:
        """Calibrate the intensities of a volume slice by slice.

        Attributes
        ----------
        volume : DICOM folder or NIfTI file.
        out : a .nii, .nii.gz, .png or .dcm (Enhanced CT) file, or a new folder for a DICOM series.
        icnet : run folder or weights of IC-Net; default: the release one.
        method : "icnet", or histogram matching to the slice before ("match-previous") or to the seed slice
            ("match-seed").
        seed_slice : slice that keeps its HU, 0 the most superior; without it IC-Net starts from air at the top.
        patient_id : Patient ID to write; default: the volume's.
        """

        volume: Annotated[Path, tyro.conf.Positional]
        out: Path
        icnet: Path = ICNET
        method: str = "icnet"
        seed_slice: int | None = None
        patient_id: str = ""

    a = parse("calibrate", Calibrate, argv)
    reading = read_volume(a.volume)
    volume, source = reading.volume, reading.source.after(Step(f"slices calibrated with {a.method}", EDITED))
    check_target(a.out, a.patient_id, source)
    if a.method == "icnet":
        done = calibrate_volume(load_icnet(a.icnet), volume, a.seed_slice)
    elif a.method in ("match-previous", "match-seed"):
        done = match_volume(volume, a.method.removeprefix("match-"), a.seed_slice or 0)
    else:
        raise UserError(f"--method {a.method}: unknown; choose icnet, match-previous or match-seed")
    write_volume(done, a.out, patient_id=a.patient_id, description=f"Calibrated with {a.method}", source=source)
    for note in reading.notes:
        print(f"note      {note}")
    print(f"wrote {a.out}")
    if not volume.acquisition.synthetic:
        if shift := brain_shift(volume, done):
            mean, worst = shift
            print(f"note      a real volume: its brain moved by {mean:+.1f} HU on average, {worst:+.1f} HU where most")
        if a.method == "icnet" and a.seed_slice is None:
            print("          calibration began from air; --seed-slice names a slice that is right and keeps its HU")


def export(argv: list[str]) -> None:
    """`slicewise export`."""
    from slicewise.data.resample import Grid, resample_volume, shear_note
    from slicewise.export import check_target, write_volume
    from slicewise.io.archive import read_volume
    from slicewise.io.provenance import RESAMPLED, Step

    @dataclass(frozen=True)
    class Export:
        """Write any volume that slicewise reads in another form. HU and geometry stay as they are, and so does what the
        headers say of patient, study and origin.

        Attributes
        ----------
        volume : DICOM folder, NIfTI file, or STORE:ID for a volume of a prepared store.
        out : a .nii, .nii.gz, .png or .dcm (Enhanced CT, multi-frame) file, or a new folder for a DICOM series.
        patient_id : Patient ID to write; default: the volume's. With another one nothing is written that leads back to
            the patient, the study or the images of the source.
        series_uid : which series, where the folder holds several.
        interpolate_missing : fill holes of one or two missing slices, with --slice-mm also of thinner ones.
        largest_part : of a scan with wider holes take the longest part without.
        slice_mm : resample an unevenly spaced or tilted scan to even axial slices this far apart, in mm (0 = leave).
        keep_tilt : lay resampled slices in the gantry's plane instead of upright.
        syntax : DICOM transfer syntax: uncompressed, jpeg-ls, jpeg-2000 or rle (all lossless).
        """

        volume: Annotated[str, tyro.conf.Positional]
        out: Path
        patient_id: str = ""
        series_uid: str = ""
        interpolate_missing: bool = False
        largest_part: bool = False
        slice_mm: float = 0.0
        keep_tilt: bool = False
        syntax: str = "uncompressed"

    a = parse("export", Export, argv)
    store, _, name = a.volume.rpartition(":")
    if store and Path(store, "manifest.jsonl").is_file():
        from slicewise.data.store import open_store

        held = open_store(Path(store))
        found = [r for r in held.records if r.id == name]
        if not found:
            raise UserError(f"{store}: no volume {name}; slicewise info {store} lists them")
        reading = held.reading(found[0])
    else:
        reading = read_volume(
            a.volume,
            series_uid=a.series_uid,
            interpolate_missing=a.interpolate_missing,
            largest_part=a.largest_part,
            grid_mm=a.slice_mm,
        )
    volume, source = reading.volume, reading.source
    check_target(a.out, a.patient_id, source)
    notes = list(reading.notes)
    if a.slice_mm:
        pixels = max(volume.hu.shape[1:])
        notes += [] if a.keep_tilt else filter(None, [shear_note(volume)])
        fov = pixels * min(volume.pixel_spacing)
        grid = Grid(pixels, fov, a.slice_mm, crop_air_above=False, keep_tilt=a.keep_tilt)
        volume = resample_volume(volume, grid)
        source = source.after(Step(f"resampled to even axial slices {a.slice_mm:g} mm apart", RESAMPLED))
    write_volume(volume, a.out, patient_id=a.patient_id, syntax=a.syntax, source=source)
    for note in notes:
        print(f"note      {note}")
    print(f"wrote {a.out}")


def info(argv: list[str]) -> None:
    """`slicewise info`."""
    from slicewise.info import describe

    @dataclass(frozen=True)
    class Info:
        """Say what a checkpoint, prepared store, run folder, DICOM folder or NIfTI file holds.

        Attributes
        ----------
        path : file or folder.
        """

        path: Annotated[Path, tyro.conf.Positional]

    print(describe(parse("info", Info, argv).path))
