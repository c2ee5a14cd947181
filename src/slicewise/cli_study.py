"""The commands `view` and `study`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from slicewise.cli import parse
from slicewise.viewer.server import address, listen, require_server, serve


def view(argv: list[str]) -> None:
    """`slicewise view`."""
    import webbrowser

    from slicewise.viewer.app import viewer
    from slicewise.viewer.labels import read_labels
    from slicewise.viewer.shelf import Shelf, entries

    @dataclass(frozen=True)
    class View:
        """Look at volumes in a browser on this machine: three planes and 3D, windows, HU, two volumes linked.

        Attributes
        ----------
        paths : DICOM folders, NIfTI files, prepared stores or runs of slicewise generate.
        labels : DICOM segmentations or NIfTI label maps to lay over the volumes that they belong to.
        host : address to bind to; other than 127.0.0.1 lets other machines look.
        port : port to bind to; 0 takes a free one.
        browser : open the page in a browser.
        """

        paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
        labels: tuple[Path, ...] = ()
        host: str = "127.0.0.1"
        port: int = 0
        browser: bool = True

    a = parse("view", View, argv)
    require_server("view")
    found, left_out = entries(a.paths)
    for left in left_out:
        print(f"left out  {left.source}: {left.reason}")
    shelf = Shelf(found, [read_labels(labels) for labels in a.labels])
    bound = listen(a.host, a.port)
    app, path = viewer(shelf, a.host)
    link = address(bound) + path
    print(f"{len(found)} volume{'s' if len(found) > 1 else ''} at {link}   (Ctrl-C ends it)", flush=True)
    if a.browser:
        webbrowser.open(link)
    serve(app, bound)


STUDY_USAGE = """\
usage: slicewise study COMMAND [OPTIONS]        (slicewise study COMMAND --help explains one)

A blinded reading study: radiologists rate real and synthetic volumes without knowing which is which.

  create --real DIR --synthetic DIR OUT    draw the cases, hide which is which, make the readers' links
  serve STUDY                              serve the readers' pages
  close STUDY                              take no more answers
  report STUDY                             tables, tests, agreement and ROC of what has been answered
"""


def study(argv: list[str]) -> None:
    """`slicewise study create | serve | close | report`."""
    commands = {"create": study_create, "serve": study_serve, "close": study_close, "report": study_report}
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    asked = bool(argv) and argv[0] in ("-h", "--help", "help")
    print(STUDY_USAGE, end="", file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else 2)


def study_create(argv: list[str]) -> None:
    """`slicewise study create`."""
    from slicewise.study.create import READERS, create, leak_text
    from slicewise.study.design import StudySettings

    @dataclass(frozen=True)
    class Create:
        """Make a reading study in a new folder.

        Attributes
        ----------
        out : folder to make.
        real, synthetic : DICOM or NIfTI folder, prepared store or run of slicewise generate.
        consent : text file to show on the first page, a paragraph a line.
        allow_leak : make it even where a program tells its cases apart without looking at them.
        """

        out: Annotated[Path, tyro.conf.Positional]
        real: Path
        synthetic: Path
        settings: Annotated[StudySettings, tyro.conf.arg(name="")]
        consent: Path | None = None
        allow_leak: bool = False

    a = parse("study create", Create, argv, settings=StudySettings())
    about, left_out, leak = create(a.out, a.real, a.synthetic, a.settings, a.consent, allow_leak=a.allow_leak)
    for left in left_out:
        print(f"left out  {left.source}: {left.reason}")
    grid, plans = about["grid"], list(about["readers"].values())
    print(
        f"{a.settings.cases} cases and {a.settings.practice} for practice, {grid['slices']} slices of {grid['size']} x "
        f"{grid['size']} pixels of {grid['pixel_mm']:.2f} mm; {len(plans)} readers read {len(plans[0]['cases'])} each"
    )
    print(f"{leak_text(leak)}{' (told to go on)' if leak.tells else ''}")
    print(f"links: {a.out / READERS} holds the readers' tokens; slicewise study serve {a.out} shows them")


def study_serve(argv: list[str]) -> None:
    """`slicewise study serve`."""
    from slicewise.study.app import open_study, study_app
    from slicewise.study.create import read_links

    @dataclass(frozen=True)
    class Serve:
        """Serve the pages of a reading study until Ctrl-C. Every answer is on disk before the reader is told so.

        Attributes
        ----------
        folder : study made by slicewise study create.
        host : address to bind to; other than 127.0.0.1 lets other machines in: put a proxy with TLS before it.
        port : port to bind to; 0 takes a free one.
        url : how readers reach the server, for the links, where it is not its own address.
        """

        folder: Annotated[Path, tyro.conf.Positional]
        host: str = "127.0.0.1"
        port: int = 8090
        url: str = ""

    a = parse("study serve", Serve, argv)
    require_server("study serve")
    held = open_study(a.folder)
    bound = listen(a.host, a.port)
    app = study_app(held, a.host, a.url)
    for reader, token in read_links(a.folder):
        print(f"{reader}: {a.url.rstrip('/') or address(bound)}/r/{token}/")
    print(f"serving {a.folder} at {address(bound)}   (Ctrl-C ends it; start it again to go on)", flush=True)
    serve(app, bound)


def study_close(argv: list[str]) -> None:
    """`slicewise study close`."""
    from slicewise.study.app import open_study

    @dataclass(frozen=True)
    class Close:
        """Close a reading study: from now on no answer is taken or changed, while it is served or later.

        Attributes
        ----------
        folder : study made by slicewise study create.
        """

        folder: Annotated[Path, tyro.conf.Positional]

    a = parse("study close", Close, argv)
    held = open_study(a.folder)
    held.answers.close_study()
    print(f"closed at {held.answers.closed_at()}")
    for reader in held.about["readers"]:
        finished = len(held.answers.finished(reader) - {-1})
        print(f"{reader}: {finished} of {len(held.sequence(reader))} cases, practice included")
    held.answers.close()


def study_report(argv: list[str]) -> None:
    """`slicewise study report`."""
    from slicewise.study.report import PAGE, write_report

    @dataclass(frozen=True)
    class Report:
        """Report on a reading study, finished or not: HTML, CSV and JSON.

        Attributes
        ----------
        folder : study made by slicewise study create.
        out : folder to write to; default: report in the study's folder.
        """

        folder: Annotated[Path, tyro.conf.Positional]
        out: Path | None = None

    a = parse("study report", Report, argv)
    out = a.out or a.folder / "report"
    figures = write_report(a.folder, out)
    for r in figures["readers"]:
        print(f"{r['reader']}: {r['finished']} of {r['total']} cases")
    print(f"Report  {out / PAGE}")
