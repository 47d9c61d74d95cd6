"""A real browser, and runs whose reports it opens."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from report_data import SUSPICIOUS, write_run

from distrib.reporting.page import render_report

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

SOME = (
    "Arched_Eyebrows", "Bald", "Blond_Hair", "Eyeglasses", "Gray_Hair", "Male", "Smiling", "Wearing_Hat", "Young",
)  # fmt: skip

Open = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's chromium, with a profile of its own that is thrown away."""
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"needs a browser in {CHROMIUM}, such as Debian's package chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), headless=True)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a file in a window of its own; at the end, whatever went wrong in any window fails the test."""
    problems: list[str] = []
    contexts = []

    def open_file(file: Path, width: int = 1280, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith("data:") or request.url == file.as_uri()
                else problems.append(f"request: {request.url}")
            ),
        )  # fmt: skip
        page.goto(file.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with some attributes, and its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "some", attributes=SOME, epochs=4, images=120)
    render_report(folder)
    return folder


@pytest.fixture(scope="session")
def large_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with CelebA's 40 attributes, and its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "forty", epochs=1, images=60)
    render_report(folder)
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one attribute and one epoch, and its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "one", attributes=("Arched_Eyebrows",), epochs=1, images=60)
    render_report(folder)
    return folder


@pytest.fixture(scope="session")
def suspicious_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose attributes and files have markup for names, and its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "suspicious", attributes=SUSPICIOUS, epochs=2, images=60)
    render_report(folder)
    return folder
