"""Commands that look for what a model of normal heads does not expect: `anomaly` and `anomaly-reference`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from slicewise.anomaly.settings import AnomalySettings
from slicewise.cli.output import print_json, print_notes, print_skipped
from slicewise.cli.parse import PLAIN
from slicewise.release import CHECKPOINT


@dataclass(frozen=True, kw_only=True)
class Anomaly:
    """Draw what every slice of a head would look like if it were normal, and score where the scan differs:
    residuals, z-scores, regions, scores with their empirical p. For research use only; nothing here is a diagnosis."""

    volume: Annotated[Path, Positional]
    """DICOM folder or NIfTI file."""
    out: Path
    """Folder to write to; an interrupted run resumes from the draws already in it."""
    reference: Path
    """Normal reference: FOLDER or FOLDER/reference.json of slicewise anomaly-reference."""
    checkpoint: Path = CHECKPOINT
    """Run folder or weights of a denoiser or a pyramid; by default the release checkpoint."""
    resample: bool = False
    """Resample a scan of another spacing, or a tilted one, onto the checkpoint's grid."""
    series_uid: str = ""
    """UID of the series to read, if the folder holds several."""
    patient_id: str = ""
    """Patient ID to write; by default the scan's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute: "auto" uses CUDA if available."""
    json: bool = False
    """Print the contents of anomaly.json."""
    settings: Annotated[AnomalySettings, PLAIN] = field(default_factory=AnomalySettings)

    def run(self) -> None:
        from slicewise.anomaly.files import write_anomalies
        from slicewise.anomaly.reference import NormalReference
        from slicewise.anomaly.run import find_anomalies, summary
        from slicewise.checkpoint import weights_file
        from slicewise.io.archive import read_volume
        from slicewise.io.dicom_write import check_patient_id
        from slicewise.io.tensors import sha256
        from slicewise.progress import counting_bar
        from slicewise.pyramid import load_generator
        from slicewise.runtime import core_dtype, processes
        from slicewise.settings import write_settings

        held = self.reference / "reference.json" if self.reference.is_dir() else self.reference
        reference = NormalReference.load(held)
        reading = read_volume(self.volume, series_uid=self.series_uid)
        check_patient_id(self.patient_id or str(reading.source.header.get("PatientID", "")))
        with processes(self.device) as process, counting_bar(not self.json) as bar:
            device = str(process.device)
            model = load_generator(self.checkpoint, core_dtype(process.device), device)
            task = bar.add_task("slices", total=None)
            found = find_anomalies(
                model,
                sha256(weights_file(self.checkpoint)),
                reading,
                reference,
                self.settings,
                self.out / "draws",
                resample=self.resample,
                device=device,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        about = {
            "model": f"{model.meta.get('name', self.checkpoint.name)} step {model.meta.get('step')}",
            "checkpoint": reference.checkpoint,
            "reference": f"{reference.heads} normal heads: {reference.source}",
        }
        notes = write_anomalies(
            found,
            self.settings,
            self.out,
            scan=reading.volume,
            path=self.volume,
            series_uid=self.series_uid,
            patient_id=self.patient_id,
            about=about,
        )
        write_settings(self.out / "config.toml", "anomaly", self.settings)
        if self.json:
            print_json(summary(found, self.settings, about))
            return
        print_notes(self, "note", [*reading.notes, *notes])
        print(f"score     {found.score:.2f}, p {found.p:.3f} of {reference.heads} normal heads")
        for region in found.regions[:5]:
            how = "denser" if region.denser else "less dense"
            first, last = region.slices
            where = f"slices {first} to {last}, z {region.peak_z:+.1f}"
            print(f"region {region.number:2} {region.cm3:.1f} cm3 {how} than expected, {where}")
        if len(found.regions) > 5:
            print(f"          and {len(found.regions) - 5} more; see {self.out / 'report.html'}")
        print("          research use only; nothing here is a diagnosis")
        print(f"wrote     {self.out}")


@dataclass(frozen=True, kw_only=True)
class AnomalyReference:
    """Measure normal heads as a reference for slicewise anomaly: heads without findings that the checkpoint was not
    trained on."""

    data: Annotated[Path, Positional]
    """Prepared store, or folder of DICOM and NIfTI files."""
    out: Path
    """Folder for reference.json and for the draws, from which an interrupted run resumes."""
    split: str = "val"
    """Split to use if DATA is a prepared store: "train", "val", "test" or "all"."""
    resample: bool = False
    """Resample heads of another spacing, or tilted ones, onto the checkpoint's grid."""
    checkpoint: Path = CHECKPOINT
    """Run folder or weights of a denoiser or a pyramid; by default the release checkpoint."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute: "auto" uses CUDA if available."""
    settings: Annotated[AnomalySettings, PLAIN] = field(default_factory=AnomalySettings)

    def run(self) -> None:
        from slicewise.anomaly.run import measure_heads
        from slicewise.checkpoint import weights_file
        from slicewise.data.sets import open_set
        from slicewise.io.tensors import sha256
        from slicewise.progress import counting_bar
        from slicewise.pyramid import load_generator
        from slicewise.runtime import core_dtype, processes
        from slicewise.settings import write_settings

        found = open_set(self.data, self.split)
        print_skipped(self, found.skipped)
        with processes(self.device) as process, counting_bar(True) as bar:
            device = str(process.device)
            model = load_generator(self.checkpoint, core_dtype(process.device), device)
            task = bar.add_task("heads", total=len(found.members))
            reference = measure_heads(
                model,
                sha256(weights_file(self.checkpoint)),
                (member.read().volume for member in found.members),
                self.settings,
                self.out / "draws",
                str(self.data.name),
                resample=self.resample,
                device=device,
                progress=lambda heads: bar.update(task, completed=heads),
            )
        reference.save(self.out / "reference.json")
        write_settings(self.out / "config.toml", "anomaly-reference", self.settings)
        print(f"wrote     {self.out / 'reference.json'}, measured on {reference.heads} heads")
