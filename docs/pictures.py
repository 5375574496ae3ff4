"""Runs the examples and takes the pictures of docs/examples.md, as TensorBoard shows them.

Run:  python docs/pictures.py [example ...]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.browser.set_up import find_or_install  # noqa: E402
from tests.browser.tabs import Browser, Card, chromium, tensorboard  # noqa: E402

EIGENVALUES = "Largest and smallest eigenvalue found, and the step size's stability threshold"
NORM = "Frobenius norm of the Hessian, with its 95 % band"
LAYERS = "Frobenius norm by layer"
# The tab, titles of cards that must be drawn, and the size of the window.
PICTURES = {
    "edge_of_stability": ("custom_scalars", [EIGENVALUES], (1400, 1400)),
    "spectrum": ("images", ["hessian/spectrum over time"], (1100, 620)),
    "transformer": ("custom_scalars", [LAYERS], (1400, 1560)),
    "early_warning": ("custom_scalars", [NORM], (1100, 900)),
    "offline": ("custom_scalars", [NORM], (1100, 900)),
}


def take(example: str, directory: Path) -> bytes:
    """The picture of an example, which runs in `directory`."""
    script = ROOT / "examples" / f"{example}.py"
    subprocess.run([sys.executable, script, "logs"], cwd=directory, check=True)
    logs = directory / "logs"
    runs = {str(path.parent.relative_to(logs)) for path in logs.rglob("*tfevents*")}
    tab, titles, size = PICTURES[example]

    def drawn(cards: list[Card]) -> bool:
        found = {card.title: card for card in cards}
        return all(title in found and found[title].drawn for title in titles)

    paths = find_or_install()
    with tensorboard(logs, runs) as url, chromium(*paths, directory / "profile") as driver:
        browser = Browser(driver, url)
        browser.see(tab, drawn, size=size)
        return browser.picture()


def main(*examples: str) -> None:
    for example in examples or PICTURES:
        with tempfile.TemporaryDirectory() as directory:
            picture = take(example, Path(directory))
        path = ROOT / "docs" / "images" / f"{example}.png"
        path.write_bytes(picture)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(*sys.argv[1:])
