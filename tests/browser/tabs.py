"""TensorBoard in a headless Chromium: opens its tabs and tells what a person sees there."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

READ_CARDS = (Path(__file__).parent / "cards.js").read_text()
# What TensorBoard 2.21 writes into a card whose data it cannot draw.
COMPLAINTS = re.compile(
    r"The steps for value, lower, and upper tags do not match.*|Missing Tags"
    r"|This regular expresion is invalid.*|Data failed to load"
)
# TensorBoard's own command, without TensorFlow, whose import takes most of the start: TensorBoard
# looks for this module to know that it is to do without.
COMMAND = (
    "import sys, types; sys.modules['tensorboard.compat.notf'] = types.ModuleType('notf'); "
    "from tensorboard.main import run_main; run_main()"
)
PATIENCE = 45.0  # seconds for a tab to show what is waited for
RELOAD = 15.0  # seconds after which the page is opened anew: data that came late stay out of it
# As a newcomer has it, but no curve smoothed, no outlier cut off, no pane of settings.
SETTINGS = {
    "_tb_global_settings": json.dumps(
        {"scalarSmoothing": 0, "ignoreOutliers": False, "timeSeriesSettingsPaneOpened": False}
    ),
    "_ignoreYOutliers": "false",
}


@dataclass(frozen=True)
class Card:
    """One card of a tab.

    Lines, areas and outlines are given by their number of points, images by width and height,
    canvases by how many columns of theirs are not empty.
    """

    title: str
    text: str
    top: float
    series: list[str]
    rows: list[dict[str, str]]
    lines: list[int]
    areas: list[int]
    outlines: list[int]
    canvases: list[int]
    images: list[list[int]]
    cells: list[str]
    loading: bool

    @property
    def complaint(self) -> str:
        """TensorBoard's own message about what is wrong; empty if nothing is."""
        found = COMPLAINTS.search(self.text)
        return found.group() if found else ""

    @property
    def drawn(self) -> bool:
        """Whether data are seen: a curve, an area, an image or a table."""
        curves = self.lines or self.areas or self.outlines
        if self.loading or not all(self.canvases):
            return False
        return bool(curves or self.canvases or self.images or self.cells)


class Browser:
    """Tabs of one TensorBoard."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self._driver = driver
        self._url = url
        driver.get(f"{url}data/environment")  # a page of the same origin, for the settings
        for key, value in SETTINGS.items():
            driver.execute_script("localStorage.setItem(...arguments)", key, value)

    def see(
        self,
        tab: str,
        ready: Callable[[list[Card]], Any],
        *,
        tags: str = "",
        size: tuple[int, int] = (1400, 4000),
    ) -> list[Card]:
        """Opens a tab and waits until its cards are as `ready` wants them.

        Args:
            tab: As in TensorBoard's address: `"timeseries"`, `"custom_scalars"`, ...
            ready: What is waited for.
            tags: Regular expression of the tags that the Time Series tab shows; a group there
                shows 12 at a time.
            size: Width and height of the window; only cards within it are drawn.

        Raises:
            AssertionError: If they never are; tells what was seen instead.
        """
        self._driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False},
        )
        query = urlencode({"darkMode": "false", "smoothing": "0", "tagFilter": tags})
        end = time.monotonic() + PATIENCE
        seen: dict[str, Any] = {"cards": [], "text": ""}
        while time.monotonic() < end:
            self._driver.get("about:blank")  # another fragment alone would load nothing
            self._driver.get(f"{self._url}?{query}#{tab}&_smoothingWeight=0")
            reload = min(end, time.monotonic() + RELOAD)
            while time.monotonic() < reload:
                seen = self._driver.execute_script(READ_CARDS)
                cards = [Card(**card) for card in seen["cards"]]
                if ready(cards):
                    return cards
                time.sleep(0.1)
        raise AssertionError(
            f"not seen within {PATIENCE:g} s in the tab {tab!r}; the cards are\n"
            + "\n".join(map(str, seen["cards"]))
            + f"\nand the page says {seen['text'][:500]!r}"
        )

    def picture(self) -> bytes:
        """The window as a PNG."""
        return self._driver.get_screenshot_as_png()


@contextmanager
def tensorboard(log_dir: Path, runs: Collection[str]) -> Iterator[str]:
    """Address of a server of this Python that has read the runs; it ends with the block."""
    with (log_dir.parent / f"{log_dir.name}.tensorboard").open("w+") as output:
        options = ["--logdir", log_dir.name, "--host", "127.0.0.1", "--port", "0"]
        server = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *options],
            cwd=log_dir.parent,  # the pages show the directory as it is given
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield _url(server, Path(output.name), runs)
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)  # and its loader of event files
                server.wait()


def _url(server: subprocess.Popen[bytes], output: Path, runs: Collection[str]) -> str:
    end = time.monotonic() + 60
    seen: set[str] = set()
    while server.poll() is None and time.monotonic() < end:
        if address := re.search(r"http://127\.0\.0\.1:\d+/", output.read_text()):
            with urllib.request.urlopen(f"{address.group()}data/runs", timeout=10) as answer:  # noqa: S310
                seen = set(json.load(answer))
            if seen >= set(runs):
                return address.group()
        time.sleep(0.2)
    raise AssertionError(
        f"TensorBoard shows the runs {sorted(seen)}, not {sorted(runs)}: {output.read_text()}"
    )


@contextmanager
def chromium(browser: str, driver: str, profile: Path) -> Iterator[webdriver.Chrome]:
    """A headless browser; nothing is downloaded for it, and it ends with the block."""
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new",
        "--no-sandbox",  # there is none for root, and the pages are our own
        "--disable-dev-shm-usage",  # small in containers
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    started = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield started
    finally:
        started.quit()
