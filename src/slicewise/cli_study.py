"""The commands `view` and `study`."""

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
    from slicewise.viewer.shelf import Shelf, entries

    @dataclass(frozen=True)
    class View:
        """Look at volumes in a browser on this machine: three planes and 3D, windows, HU, two volumes linked.

        Attributes
        ----------
        paths : DICOM folders, NIfTI files, prepared stores or runs of slicewise generate.
        host : address to bind to; other than 127.0.0.1 lets other machines look.
        port : port to bind to; 0 takes a free one.
        browser : open the page in a browser.
        """

        paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
        host: str = "127.0.0.1"
        port: int = 0
        browser: bool = True

    a = parse("view", View, argv)
    require_server("view")
    found, left_out = entries(a.paths)
    for left in left_out:
        print(f"left out  {left.source}: {left.reason}")
    bound = listen(a.host, a.port)
    app, path = viewer(Shelf(found), a.host)
    link = address(bound) + path
    print(f"{len(found)} volume{'s' if len(found) > 1 else ''} at {link}   (Ctrl-C ends it)", flush=True)
    if a.browser:
        webbrowser.open(link)
    serve(app, bound)
