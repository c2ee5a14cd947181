"""Commands that make and correct volumes: `demo`, `generate`, `fill` and `calibrate`."""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from slicewise.cli.output import print_json, print_notes
from slicewise.cli.parse import PLAIN, as_flags
from slicewise.errors import UserError
from slicewise.release import CHECKPOINT, ICNET, REFERENCE
from slicewise.sampling import GenerateSettings


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Generate head CT volumes, slice by slice: DICOM series, NIfTI, pictures and a report."""

    out: Path
    """Folder to write to; volumes that already exist are kept."""
    checkpoint: Path = CHECKPOINT
    """Run folder or weights of a denoiser, a pyramid or a baseline; by default the release checkpoint."""
    icnet: Path = ICNET
    """Run folder or weights of IC-Net; by default the release one."""
    reference: Path = REFERENCE
    """Measurements of the training data for the report (slicewise reference); by default the release's."""
    report: bool = True
    """Write pictures and the HTML report."""
    dry_run: bool = False
    """Only say what would be done."""
    json: bool = False
    """Print where the results are, and what generate.json holds, as JSON."""
    settings: Annotated[GenerateSettings, PLAIN] = field(default_factory=GenerateSettings)

    def run(self) -> None:
        settings, out = self.settings, self.out
        if self.report and not self.reference.is_file():
            raise UserError(
                f"--reference {self.reference}: no such file; make one with slicewise reference, or add --no-report"
            )
        if self.dry_run:
            print(f"would generate {settings.count} volumes with {self.checkpoint} into {out}")
            return

        from slicewise import generate as generation
        from slicewise.progress import counting_bar
        from slicewise.settings import write_settings

        main_process = os.environ.get("RANK", "0") == "0"
        started = time.monotonic()
        with counting_bar(main_process) as bar:
            task = bar.add_task("volumes", total=settings.count)
            run = generation.generate(
                self.checkpoint,
                out,
                settings,
                self.icnet if settings.calibrate != "off" else None,
                lambda volumes, slices: bar.update(task, completed=volumes, note=f"slice {slices}" if slices else ""),
                lambda text: print(f"note          {as_flags(text, Generate)}", file=sys.stderr) if text else None,
            )
        if not main_process:
            return
        write_settings(out / "config.toml", "generate", settings)
        seconds = time.monotonic() - started
        pages: list[Path] = []
        if self.report:
            from slicewise.reporting.generated import write_run_report

            pages = write_run_report(out, generation.results(out, settings.count), self.reference, run)
        if self.json:
            folders = {"dicom": out / "dicom", "nifti": out / "nifti" if settings.nifti else None}
            print_json({"out": out, **folders, "pages": pages, "seconds": round(seconds, 1), "run": run})
            return
        print(f"DICOM series  {out / 'dicom'}   ({seconds:.0f} s)")
        if settings.nifti:
            print(f"NIfTI         {out / 'nifti'}")
        for path in pages:
            print(f"{'Report' if path.suffix == '.html' else 'Picture':13} {path}")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Generate a few head CT volumes with the release checkpoint and say where they are."""

    out: Path = Path("runs/demo")
    """Folder to write to."""
    count: int = 4
    """Volumes to generate."""
    seed: int = 0
    """Seed of the run."""

    def run(self) -> None:
        Generate(out=self.out, settings=GenerateSettings(count=self.count, seed=self.seed)).run()


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Calibrate the intensities of a volume slice by slice."""

    volume: Annotated[Path, Positional]
    """DICOM folder or NIfTI file."""
    out: Path
    """A .nii, .nii.gz, .png or .dcm (Enhanced CT) file to write, or a new folder for a DICOM series."""
    icnet: Path = ICNET
    """Run folder or weights of IC-Net; by default the release one."""
    method: Literal["icnet", "match-previous", "match-seed"] = "icnet"
    """IC-Net, or histogram matching to the slice before ("match-previous") or to the seed slice ("match-seed")."""
    seed_slice: int | None = None
    """Slice that keeps its HU, 0 the most superior; without it IC-Net starts from air at the top."""
    patient_id: str = ""
    """Patient ID to write; by default the volume's."""

    def run(self) -> None:
        from slicewise.calibrate import brain_shift, calibrate_volume, match_volume
        from slicewise.checkpoint import load_icnet
        from slicewise.export import check_target, write_volume
        from slicewise.io.archive import read_volume
        from slicewise.io.provenance import EDITED, Step

        reading = read_volume(self.volume)
        volume = reading.volume
        source = reading.source.after(Step(f"slices calibrated with {self.method}", EDITED))
        check_target(self.out, self.patient_id, source)
        if self.method == "icnet":
            done = calibrate_volume(load_icnet(self.icnet), volume, self.seed_slice)
        else:
            done = match_volume(volume, self.method.removeprefix("match-"), self.seed_slice or 0)
        how = f"Calibrated with {self.method}"
        write_volume(done, self.out, patient_id=self.patient_id, description=how, source=source)
        print_notes(self, "note", reading.notes)
        print(f"wrote {self.out}")
        if volume.acquisition.synthetic:
            return
        if shift := brain_shift(volume, done):
            mean, worst = shift
            print(f"note      a real volume: its brain moved by {mean:+.1f} HU on average, {worst:+.1f} HU at worst")
        if self.method == "icnet" and self.seed_slice is None:
            print("          calibration started from air; give --seed-slice, a correct slice that keeps its HU")


@dataclass(frozen=True, kw_only=True)
class Fill:
    """Draw the missing slices of a head scan, given all of its known slices. Gaps in a DICOM series are found;
    damaged slices can be listed. Real slices keep their voxels. For research only."""

    volume: Annotated[Path, Positional]
    """DICOM folder or NIfTI file."""
    out: Path
    """A .nii, .nii.gz, .png or .dcm (Enhanced CT) file to write, or a new folder for a DICOM series."""
    slices: tuple[int, ...] = ()
    """Slices to redraw besides the missing ones, on the checkpoint's grid; 0 is the most superior."""
    complete: tuple[Literal["up", "down"], ...] = ()
    """Directions in which to complete a head that the scan cuts off, as far as the checkpoint's plan reaches."""
    above_mm: float = 0.0
    """How much of the head is missing above the first slice, in mm; 0 if the scan starts at or above the vertex."""
    checkpoint: Path = CHECKPOINT
    """Run folder or weights of a denoiser or a pyramid; by default the release checkpoint."""
    size: int = 0
    """Pixels per side, for checkpoints that draw several: 128 or 512 with the release's; 0 takes what the checkpoint
    says, which is 128 for the release's."""
    seed: int = 0
    """Seed of the draws; a different seed draws different slices."""
    resample: bool = False
    """Resample a scan of another spacing onto the checkpoint's grid."""
    series_uid: str = ""
    """UID of the series to read, if the folder holds several."""
    patient_id: str = ""
    """Patient ID to write; by default the scan's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute: "auto" uses CUDA if available."""

    def run(self) -> None:
        from slicewise.export import check_target, write_volume
        from slicewise.fill import fill_scan
        from slicewise.io.archive import read_volume
        from slicewise.progress import counting_bar
        from slicewise.pyramid import load_generator
        from slicewise.runtime import core_dtype, processes

        reading = read_volume(self.volume, series_uid=self.series_uid, keep_holes=True)
        check_target(self.out, self.patient_id, reading.source)
        with processes(self.device) as process, counting_bar(True) as bar:
            device = str(process.device)
            model = load_generator(self.checkpoint, core_dtype(process.device), device, self.size)
            task = bar.add_task("slices", total=None)  # a plan says how many only when it is made
            filled = fill_scan(
                model,
                reading,
                self.slices,
                name=self.checkpoint.name,
                seed=self.seed,
                complete=self.complete,
                above_mm=self.above_mm,
                resample=self.resample,
                device=device,
                progress=lambda slices: bar.update(task, completed=slices),
            )
        write_volume(
            filled.volume,
            self.out,
            patient_id=self.patient_id,
            description="Head CT with synthetic slices",
            synthetic=filled.origin,
            source=filled.source,
        )
        print_notes(self, "note", reading.notes)
        drawn = ", ".join(map(str, filled.origin.drawn))
        print(f"drew      slice {drawn} of {len(filled.volume.hu)}; 0 is the most superior")
        print(f"wrote     {self.out}")
