"""A headless Chromium for the tests of pages, or the reason that there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

REQUIRED = "required"
"""Value of the variable GENIE_BROWSER with which a test fails where it would be skipped."""
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright's: the Chromium of the system, else the one that playwright installed.

    Without one the test is skipped, or fails where GENIE_BROWSER is ``required``.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        _without(f"playwright is not installed: {error}")
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=list(_OPTIONS))
        except Error as error:
            _without(f"no Chromium can be started: {error.message.splitlines()[0]}")
        try:
            yield browser
        finally:
            browser.close()


def _without(reason: str) -> None:
    if os.environ.get("GENIE_BROWSER") == REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)
