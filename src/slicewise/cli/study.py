"""Commands of a blinded reading study, in which radiologists rate real and synthetic volumes without knowing which is
which: `study create`, `study serve`, `study close` and `study report`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from slicewise.cli.output import print_skipped
from slicewise.cli.parse import PLAIN
from slicewise.study.design import StudySettings


@dataclass(frozen=True, kw_only=True)
class Create:
    """Create a reading study in a new folder."""

    out: Annotated[Path, Positional]
    """Folder to create."""
    real: Path
    """Real volumes: DICOM or NIfTI folder, prepared store or run of slicewise generate."""
    synthetic: Path
    """Synthetic volumes, in the same forms."""
    consent: Path | None = None
    """Text file to show on the first page, one paragraph per line."""
    allow_leak: bool = False
    """Create the study even if a program can tell its cases apart without looking at them."""
    settings: Annotated[StudySettings, PLAIN] = field(default_factory=StudySettings)

    def run(self) -> None:
        from slicewise.study.create import READERS, create, leak_text

        settings, out = self.settings, self.out
        about, skipped, leak = create(
            out, self.real, self.synthetic, settings, self.consent, allow_leak=self.allow_leak
        )
        print_skipped(self, skipped)
        grid, plans = about["grid"], list(about["readers"].values())
        print(
            f"{settings.cases} cases and {settings.practice} for practice, {grid['slices']} slices of {grid['size']} x "
            f"{grid['size']} pixels of {grid['pixel_mm']:.2f} mm; {len(plans)} readers read {len(plans[0]['cases'])} "
            "each"
        )
        print(f"{leak_text(leak)}{' (allowed)' if leak.tells else ''}")
        print(f"links: {out / READERS} holds the readers' tokens; slicewise study serve {out} shows them")


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve the pages of a reading study until Ctrl-C. Every answer is on disk before the page confirms it."""

    folder: Annotated[Path, Positional]
    """Study made by slicewise study create."""
    host: str = "127.0.0.1"
    """Address to bind to; other than 127.0.0.1 lets other machines in: put a proxy with TLS in front of it."""
    port: int = 8090
    """Port to bind to; 0 picks a free one."""
    url: str = ""
    """Address that readers' links start with, if it is not the server's own."""

    def run(self) -> None:
        from slicewise.study.app import open_study, study_app
        from slicewise.study.create import read_links
        from slicewise.viewer.server import address, listen, require_server, serve

        require_server("study serve")
        held = open_study(self.folder)
        bound = listen(self.host, self.port)
        app = study_app(held, self.host, self.url)
        for reader, token in read_links(self.folder):
            print(f"{reader}: {self.url.rstrip('/') or address(bound)}/r/{token}/")
        print(f"serving {self.folder} at {address(bound)}   (Ctrl-C ends it; start it again to resume)", flush=True)
        serve(app, bound)


@dataclass(frozen=True, kw_only=True)
class Close:
    """Close a reading study: from now on no answer is accepted or changed, even by a running server."""

    folder: Annotated[Path, Positional]
    """Study made by slicewise study create."""

    def run(self) -> None:
        from slicewise.study.app import open_study

        held = open_study(self.folder)
        held.answers.close_study()
        print(f"closed at {held.answers.closed_at()}")
        for reader in held.about["readers"]:
            finished = len(held.answers.finished(reader) - {-1})
            print(f"{reader}: {finished} of {len(held.sequence(reader))} cases, practice included")
        held.answers.close()


@dataclass(frozen=True, kw_only=True)
class Report:
    """Report on a reading study, finished or not: HTML, CSV and JSON."""

    folder: Annotated[Path, Positional]
    """Study made by slicewise study create."""
    out: Path | None = None
    """Folder to write to; by default report in the study's folder."""

    def run(self) -> None:
        from slicewise.study.report import PAGE, write_report

        out = self.out or self.folder / "report"
        figures = write_report(self.folder, out)
        for r in figures["readers"]:
            print(f"{r['reader']}: {r['finished']} of {r['total']} cases")
        print(f"Report  {out / PAGE}")
