"""Takes the README's pictures: `make screenshots`. Six test cards and two videos, in windows and in a browser.

The page of numbers is taken last, so that its curves have something to show.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.browser import Fleet, chromium
from tests.conftest import until
from tests.lab import images
from tests.lab.lab import CACHE
from tests.pictures.windows import windows_screenshots

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
MINUTES_S = 150
PASSWORD = "only for this picture"


def videos() -> list[Path]:
    """What pi7 and pi8 play."""
    CACHE.mkdir(parents=True, exist_ok=True)
    return [images.footage(CACHE) / name for name in ("bikes.mp4", "bigbuckbunny.mp4")]


def take(browser: Browser, fleet: Fleet, name: str, path: str = "", ready: str = "LIVE", **options: Any) -> None:
    """Take one picture, of a page that has shown `ready`."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.goto(fleet.url + path)
    page.get_by_text(ready).first.wait_for()
    time.sleep(2)  # for every picture to be there, and for a person to find the moment a good one
    page.screenshot(path=HERE / f"{name}.png")
    print(f"{name}.png")
    context.close()


def main() -> int:
    """Take all."""
    desktop: dict[str, Any] = {"viewport": {"width": 1280, "height": 720}, "color_scheme": "dark"}
    phone: dict[str, Any] = {
        "viewport": {"width": 390, "height": 780},
        "color_scheme": "light",
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
    }
    played = videos()
    windows_screenshots(HERE, played)
    print("windows.png\ngrid.png")
    cameras = {f"pi{number}": "pattern" for number in range(1, 7)} | {
        f"pi{number}": f"file:{video}" for number, video in enumerate(played, 7)
    }
    with chromium() as browser:
        with Fleet(cameras, size="640x480") as fleet:
            began = time.monotonic()
            take(browser, fleet, "wall", **desktop)
            take(browser, fleet, "phone", **phone)
            take(browser, fleet, "one", "#pi8", **desktop | {"viewport": {"width": 800, "height": 500}})
            time.sleep(max(0.0, MINUTES_S - (time.monotonic() - began)))
            fleet.senders["pi3"].process.kill()
            until(lambda: fleet.ask("api/cameras")[2]["state"] == "STALE")
            with_viewer = browser.new_page()
            with_viewer.goto(fleet.url)
            take(browser, fleet, "stale", ready="STALE", **desktop)
            take(browser, fleet, "numbers", "numbers", viewport={"width": 1440, "height": 560}, color_scheme="light")
        with Fleet({"pi1": "pattern"}, password=PASSWORD) as fleet:
            small: dict[str, Any] = {"viewport": {"width": 640, "height": 400}, "color_scheme": "dark"}
            take(browser, fleet, "login", ready="Password", **small)
    return 0


if __name__ == "__main__":
    sys.exit(main())
