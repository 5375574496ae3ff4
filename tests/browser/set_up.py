"""Finds Chromium and its driver, or installs Debian's where that is allowed.

The tests call it by themselves; by hand:  python -m tests.browser.set_up
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "chromium-driver", "fonts-liberation")


class NoBrowserError(Exception):
    """There is no browser here, and none can be installed; says why."""


def find() -> tuple[str, str] | None:
    """Paths of the browser and of its driver, if both are there."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


def find_or_install() -> tuple[str, str]:
    """Paths of the browser and of its driver; of several processes one installs, others wait.

    Raises:
        NoBrowserError: If there is none and it cannot be installed.
    """
    if found := find():
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NoBrowserError(
            "no Chromium with its driver on the PATH, and only root may install them with "
            f"apt-get. Run: sudo apt-get install {' '.join(PACKAGES)}"
        )
    with (Path(tempfile.gettempdir()) / "install-chromium.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if found := find():  # another process was first
            return found
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", *PACKAGES)
    if found := find():
        return found
    raise NoBrowserError(f"apt-get installed {' '.join(PACKAGES)}, but not on the PATH")


def _apt_get(*arguments: str) -> None:
    command = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", *arguments]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        raise NoBrowserError(f"`{' '.join(command)}` took over 300 s") from expired
    if done.returncode != 0:
        raise NoBrowserError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}")


if __name__ == "__main__":
    print(*find_or_install(), sep="\n")
