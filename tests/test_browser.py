"""What a person sees who opens TensorBoard on a run of the quickstart.

A headless Chromium opens the tabs. Where there is none, `tests/browser/set_up.py` installs Debian's
if it may; where it may not, these tests are skipped with a warning, and fail where CI=true is set.

The pictures for the README are what the last test sees:

    KHC_SCREENSHOTS=docs/images python -m pytest tests/test_browser.py -k picture
"""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar

from tests.browser.set_up import NoBrowserError, find_or_install
from tests.browser.tabs import Browser, Card, chromium, tensorboard
from tests.test_summaries import events

QUICKSTART = Path(__file__).parent.parent / "examples" / "quickstart.py"
EPOCHS = 15

# What the quickstart must show: titles of cards by tab, in their order. All of it is set here.
NORM = "hessian/frobenius_norm"
EXPECTED = {
    "timeseries": [NORM, f"{NORM}/lower", f"{NORM}/upper"],
    "custom_scalars": [
        "Frobenius norm of the Hessian, with its 95 % band",
        "Largest and smallest eigenvalue found, and the step size's stability threshold",
        "Trace of the Hessian, with its 95 % band",
        "Spectral norm (largest |eigenvalue|), with its bounds",
        "Stable rank: directions that share the curvature, with its bounds",
        "Frobenius norm by layer",
        "Overhead: time of the measurements over the rest",
    ],
    "histograms": ["hessian/spectrum: sign(x) log10(1 + |x| / 0.001)"],
    "distributions": ["hessian/spectrum: sign(x) log10(1 + |x| / 0.001)"],
    "images": ["hessian/spectrum over time"],
    "text": ["hessian/about"],
}
# Tags that a picture's tab is filtered by, and titles that it must show.
LARGEST = "hessian/largest_ritz_value"
PICTURES = {
    "timeseries": (
        f"^({NORM}|{LARGEST})",
        [f"{name}{end}" for name in (NORM, LARGEST) for end in ("", "/lower", "/upper")],
    ),
    "custom_scalars": ("", EXPECTED["custom_scalars"][:3]),
}

# What the small run below must show: everything that TensorBoard draws differently.
MADE = {
    "timeseries": ["made/value", "made/spectrum", "made/picture"],
    "custom_scalars": ["Band", "Lines"],
    "histograms": ["made/spectrum"],
    "distributions": ["made/spectrum"],
    "images": ["made/picture"],
    "text": ["made/about"],
}
MADE_STEPS = 5


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    try:
        paths = find_or_install()
    except NoBrowserError as error:
        if os.environ.get("CI") == "true":
            raise
        warnings.warn(f"WHAT TENSORBOARD SHOWS IS NOT TESTED: {error}", stacklevel=1)
        pytest.skip(str(error))
    with chromium(*paths, profile=tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def quickstart(driver, tmp_path_factory):
    """The browser on a run of the quickstart, and the directory of the run."""
    logs = tmp_path_factory.mktemp("quickstart") / "logs"
    done = subprocess.run(
        [sys.executable, QUICKSTART, logs], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (run,) = logs.iterdir()
    with tensorboard(logs, [f"{run.name}/hessian", f"{run.name}/train"]) as url:
        yield Browser(driver, url), run


@pytest.fixture(scope="module")
def made(driver, tmp_path_factory):
    """The browser on a run with one of each kind, right ones and broken ones."""
    logs = tmp_path_factory.mktemp("made") / "logs"
    with tf.summary.create_file_writer(str(logs / "run")).as_default(), tf.summary.record_if(True):
        layout = custom_scalar.pb(
            layout_pb2.Layout(
                category=[
                    layout_pb2.Category(
                        title="right", chart=[band("Band", "made"), lines("Lines")]
                    ),
                    layout_pb2.Category(
                        title="wrong",
                        chart=[
                            band("Other steps", "gaps"),
                            band("No upper end", "open"),
                            band("No such band", "absent"),
                        ],
                    ),
                ]
            )
        )
        tf.summary.experimental.write_raw_pb(layout.SerializeToString(), step=0)
        tf.summary.text("made/about", "| setting | value |\n|---|---|\n| seed | 7 |", step=0)
        for step in range(MADE_STEPS):
            for tag in ("value", "lower", "upper"):
                tf.summary.scalar(f"made/{tag}", step + len(tag), step=step)
                if tag != "lower" or step % 2:
                    tf.summary.scalar(f"gaps/{tag}", step, step=step)
                if tag != "upper":
                    tf.summary.scalar(f"open/{tag}", step, step=step)
            tf.summary.histogram("made/spectrum", np.linspace(-step, 9.0, 50), step=step)
            tf.summary.image("made/picture", np.full((1, 8, 12, 3), 0.5), step=step)
    with tensorboard(logs, ["run"]) as url:
        yield Browser(driver, url)


def band(title: str, group: str) -> layout_pb2.Chart:
    series = layout_pb2.MarginChartContent.Series(
        value=f"{group}/value", lower=f"{group}/lower", upper=f"{group}/upper"
    )
    return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[series]))


def lines(title: str) -> layout_pb2.Chart:
    content = layout_pb2.MultilineChartContent(tag=["made/(lower|upper)$"])
    return layout_pb2.Chart(title=title, multiline=content)


def titled(cards: list[Card]) -> dict[str, Card]:
    return {card.title: card for card in cards}


def see(browser: Browser, tab: str, titles: list[str]) -> dict[str, Card]:
    """Waits for cards of these titles until each is drawn or complains."""

    def settled(cards: list[Card]) -> bool:
        found = titled(cards)
        return all(t in found and (found[t].drawn or found[t].complaint) for t in titles)

    tags = f"^({'|'.join(map(re.escape, titles))})$"
    return titled(browser.see(tab, settled, tags=tags))


def test_without_a_browser_and_the_right_to_install_one_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NoBrowserError, match=r"sudo apt-get install chromium chromium-driver"):
        find_or_install()


@pytest.mark.parametrize("tab", EXPECTED)
def test_the_quickstart_shows(quickstart, tab):
    browser, run = quickstart
    cards = see(browser, tab, EXPECTED[tab])
    assert [title for title in cards if title in EXPECTED[tab]] == EXPECTED[tab]
    for title in EXPECTED[tab]:
        check(tab, cards[title], f"{run.name}/hessian", EPOCHS)


@pytest.mark.parametrize("tab", MADE)
def test_a_run_with_one_of_each_kind_shows(made, tab):
    cards = see(made, tab, MADE[tab])
    for title in MADE[tab]:
        check(tab, cards[title], "run", MADE_STEPS)


def check(tab: str, card: Card, run: str, steps: int) -> None:
    """A card shows data of the run, at every step, and no complaint."""
    assert card.complaint == ""
    assert card.drawn, card
    if tab == "custom_scalars":
        assert card.series, card
        assert all(entry.endswith(f"({run})") for entry in card.series)
        assert set(card.lines) == {steps}, card
    else:
        assert run in card.text
    if tab == "timeseries" and card.rows:  # a scalar: the curve spans the card
        assert min(card.canvases) > 100, card
    if tab == "histograms":
        assert len(card.outlines) == steps
    if tab == "distributions":  # nine percentiles
        assert card.areas == [pytest.approx(2 * steps, abs=2)] * 8
    if tab == "images":
        assert all(width > 1 for width, _ in card.images)
        assert card.images


def test_the_time_series_show_the_values_of_the_files(quickstart):
    browser, run = quickstart
    cards = see(browser, "timeseries", EXPECTED["timeseries"])
    for tag in EXPECTED["timeseries"]:
        (row,) = cards[tag].rows
        step, value = events(run / "hessian")[tag][-1]
        assert row["Run"] == f"{run.name}/hessian"
        assert int(row["Step"]) == step == EPOCHS - 1
        assert float(row["Value"]) == pytest.approx(value, rel=1e-3)


def test_a_band_is_a_line_within_an_area_and_lines_are_lines(made):
    cards = see(made, "custom_scalars", MADE["custom_scalars"])
    assert cards["Band"].areas
    assert cards["Band"].series == ["made/value (run)"]
    assert cards["Lines"].areas == []
    assert sorted(cards["Lines"].series) == ["made/lower (run)", "made/upper (run)"]


def test_a_table_is_shown_as_a_table(made):
    (card,) = see(made, "text", MADE["text"]).values()
    assert card.cells == ["seed", "7"]


def test_a_card_that_complains_is_found_out(made):
    complaints = {
        "Other steps": "The steps for value, lower, and upper tags do not match: "
        "gaps/value : 0, 1, 2, 3, 4 gaps/lower : 1, 3 gaps/upper : 0, 1, 2, 3, 4",
        "No upper end": "Missing Tags",
    }
    cards = see(made, "custom_scalars", list(complaints))
    for title, complaint in complaints.items():
        assert cards[title].complaint.startswith(complaint)
        assert not cards[title].drawn
        with pytest.raises(AssertionError):
            check("custom_scalars", cards[title], "run", MADE_STEPS)


@pytest.mark.parametrize(
    ("tab", "title", "seen"),
    [
        ("custom_scalars", "No such band", r"Matches \(0\)"),
        ("text", "made/nothing", "made/about"),
    ],
)
def test_a_card_without_data_or_missing_is_waited_for_in_vain(made, monkeypatch, tab, title, seen):
    see(made, tab, MADE[tab])  # the wait is short, but long enough for those that are there
    monkeypatch.setattr("tests.browser.tabs.PATIENCE", 4.0)
    with pytest.raises(AssertionError, match=rf"not seen within 4 s in the tab '{tab}'[^~]*{seen}"):
        see(made, tab, [title])


@pytest.mark.parametrize("tab", PICTURES)
def test_a_picture_shows_the_cards(quickstart, tab, tmp_path):
    browser, _ = quickstart
    tags, titles = PICTURES[tab]

    def drawn(cards: list[Card]) -> bool:
        return all(t in titled(cards) and titled(cards)[t].drawn for t in titles)

    cards = titled(browser.see(tab, drawn, tags=tags, size=(1400, 900)))
    assert all(0 < cards[title].top < 700 for title in titles)  # in the window
    directory = Path(os.environ.get("KHC_SCREENSHOTS", tmp_path))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{tab}.png"
    path.write_bytes(browser.picture())
    pixels = tf.io.decode_png(path.read_bytes(), channels=3).numpy()
    assert pixels.shape == (900, 1400, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50  # of one colour, had it shown nothing
