"""A real Chromium for tests of pages, without a graphics card."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# SwiftShader draws WebGL on the processor; in a container Chromium cannot make its own sandbox.
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
FLAGS += ["--ignore-gpu-blocklist"]


def chromium() -> str | None:
    """The browser that the Makefile's `tools` installs (Debian's chromium), or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def browser() -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=FLAGS, headless=True)
        try:
            yield opened
        finally:
            opened.close()


class Listener:
    """What a page says: console errors, uncaught exceptions, and every address it asks for."""

    def __init__(self, page: Any) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))


def accessible(page: Any) -> None:
    """No finding of axe-core, which checks a page against the rules of WCAG and good practice."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert len(found.response["passes"]) > 5, "and it has looked"
