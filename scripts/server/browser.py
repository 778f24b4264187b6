"""A headless Chromium for ComfyUI's front end: `python -m scripts.server.browser` installs it.

It uses Debian's chromium with playwright's Python package, so no browser build is downloaded.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without these it looks for updates, or does not start in a container.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NODES_2 = "Comfy.VueNodes.Enabled"  # the front end's setting for Nodes 2.0
# All others stay at their defaults, so that pages look as they do for a new user.
_SETTINGS = {"Comfy.TutorialCompleted": True}
_READY = "() => window.app?.graph && window.app.extensionManager"


class BrowserMissing(RuntimeError):
    """There is no browser; the message says what to do."""


def browser_path() -> str:
    """Chromium's program: CHROMIUM, else the first one on the path.

    Raises:
        BrowserMissing: there is no Chromium, or the package playwright is missing.
    """
    if importlib.util.find_spec("playwright") is None:
        raise BrowserMissing("the package playwright is missing: run `make setup`")
    named = os.environ.get("CHROMIUM")
    found = next(filter(None, map(shutil.which, [named] if named else NAMES)), None)
    if found is None:
        raise BrowserMissing("no chromium: run `make test-browser` as root, or set CHROMIUM")
    return found


@contextmanager
def open_page(url: str, width: int = 1900, height: int = 1100) -> Iterator[Any]:
    """ComfyUI's front end in a fresh profile, ready for use, as a playwright page."""
    from playwright.sync_api import sync_playwright

    path = browser_path()
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=path,
            headless=True,
            args=list(FLAGS),
            viewport={"width": width, "height": height},
        )
        try:
            page = context.pages[0]
            page.set_default_timeout(120_000)
            page.goto(url)
            wait_until_ready(page)
            change_settings(page, _SETTINGS)
            yield page
        finally:
            context.close()


def wait_until_ready(page: Any) -> None:
    page.wait_for_function(_READY)
    page.wait_for_timeout(2500)  # extensions register themselves after that


def change_settings(page: Any, values: dict[str, Any]) -> None:
    """Change settings of the front end and reload it."""
    page.evaluate(
        """async values => {
            for (const [name, value] of Object.entries(values))
                await app.extensionManager.setting.set(name, value)
        }""",
        values,
    )
    page.reload()
    wait_until_ready(page)


def install() -> None:
    """Install Debian's chromium if there is none.

    Raises:
        BrowserMissing: this user may not install packages, or there is no apt-get.
    """
    try:
        browser_path()
        return
    except BrowserMissing as error:
        apt = shutil.which("apt-get")
        if apt is None or os.geteuid() != 0:
            raise error
    subprocess.run([apt, "update", "-q"], check=True)
    packages = ["chromium", "fonts-noto-cjk"]  # the font, for Chinese texts
    subprocess.run([apt, "install", "-q", "-y", "--no-install-recommends", *packages], check=True)


def main() -> int:
    try:
        install()
        print(browser_path())
    except (BrowserMissing, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
