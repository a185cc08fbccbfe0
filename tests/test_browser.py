"""The pages in a real browser, with real senders behind them."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import streamer
from streamer.codec import encode_jpeg
from streamer.presence import Status
from streamer.wall import Wall, _static_files
from tests.browser import COUNT_DRAWINGS, Fleet, SlowLine, chromium, needs_chromium, reads
from tests.conftest import until
from tests.peers import JPEG

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page, Route

pytestmark = [
    needs_chromium,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:playwright"),
]

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
EIGHT = {f"pi{number}": "pattern" for number in range(1, 9)}

# Counts what keeps the screen on.
COUNT_LOCKS = """
window.locks = 0;
const request = WakeLock.prototype.request;
WakeLock.prototype.request = async function (kind) {
  const lock = await request.call(this, kind);
  window.locks += 1;
  lock.addEventListener("release", () => { window.locks -= 1; });
  return lock;
};
"""


# Collects what an element says whenever that changes.
CHANGES = """selector => {
  const said = [];
  const element = document.querySelector(selector);
  new MutationObserver(() => said.push(element.textContent)).observe(element, {
    childList: true, characterData: true, subtree: true,
  });
  return said;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def eight() -> Iterator[Fleet]:
    with Fleet({**EIGHT, "pi9": None}, stale_after_s=1, gone_after_s=3) as fleet:
        yield fleet


@contextlib.contextmanager
def looking(browser: Browser, url: str, size: dict[str, int] = DESKTOP, **options: Any) -> Iterator[Page]:
    """Open a page; an error of its script fails the test."""
    context = browser.new_context(viewport=size, **options)  # type: ignore[arg-type]
    context.set_default_timeout(15_000)
    context.add_init_script(COUNT_DRAWINGS)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    try:
        page.goto(url)
        yield page
        assert errors == []
    finally:
        context.close()


def tile(page: Page, name: str) -> Any:
    return page.locator(f'.tile[data-name="{name}"]')


def says(page: Page, name: str, pattern: str, within_s: float = 15) -> None:
    """Wait until a tile says so."""
    reads(name, lambda: tile(page, name).inner_text(), pattern, within_s)


def drawings(page: Page) -> dict[str, int]:
    counts: dict[str, int] = page.evaluate("window.drawings")
    return counts


def contents(page: Page) -> dict[str, str]:
    """What is on each canvas."""
    canvases = page.locator(".tile canvas")
    script = "all => Object.fromEntries(all.map(one => [one.closest('.tile').dataset.name, one.toDataURL()]))"
    pixels: dict[str, str] = canvases.evaluate_all(script)
    return pixels


def all_drawn(page: Page, names: Any, times: int = 2, within_s: float = 15) -> None:
    """Wait until each canvas was drawn so many times more."""
    before = drawings(page)
    until(lambda: all(drawings(page).get(name, 0) >= before.get(name, 0) + times for name in names), within_s)


def test_all_eight_pictures_move(browser: Browser, eight: Fleet) -> None:
    with looking(browser, eight.url) as page:
        all_drawn(page, EIGHT, 1)
        before = contents(page)
        assert len(set(before.values())) == 9
        all_drawn(page, EIGHT)
        after = contents(page)
        assert [name for name in before if after[name] == before[name]] == ["pi9"]
        for name in EIGHT:
            says(page, name, rf"^{name} ● LIVE \d+ fps")
        says(page, "pi9", "^waiting for its first picture pi9 ○ WAITING$")
        assert page.locator("#summary").inner_text() == "● 8 of 9 LIVE · ○ 1 WAITING"
        assert page.title() == "8 of 9 cameras live"


def test_killed_sender_is_stale_then_gone_and_comes_back(browser: Browser, eight: Fleet) -> None:
    with looking(browser, eight.url) as page:
        says(page, "pi3", "LIVE")
        eight.senders["pi3"].process.kill()
        says(page, "pi3", r"no picture for \d s pi3 ▲ STALE")
        greyed = tile(page, "pi3").locator("canvas").evaluate("canvas => getComputedStyle(canvas).filter")
        assert "grayscale(1)" in greyed
        says(page, "pi3", r"gone, last seen \d s ago pi3 ■ GONE")
        assert not tile(page, "pi3").locator("canvas").is_visible()
        says(page, "pi4", "LIVE")
        eight.start("pi3")
        says(page, "pi3", "pi3 ● LIVE")
        all_drawn(page, ["pi3"])


def test_one_camera_by_keyboard_and_back(browser: Browser, eight: Fleet) -> None:
    with looking(browser, eight.url) as page:
        all_drawn(page, EIGHT, 1)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        until(lambda: page.evaluate("location.hash") == "#pi2")
        until(lambda: [name for name in EIGHT if tile(page, name).is_visible()] == ["pi2"])
        all_drawn(page, ["pi2"])
        page.keyboard.press("ArrowRight")
        assert page.evaluate("location.hash") == "#pi3"
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("location.hash") == "#pi9"
        page.keyboard.press("Escape")
        until(lambda: all(tile(page, name).is_visible() for name in EIGHT))
        until(lambda: page.evaluate("document.activeElement.dataset.name") == "pi9")
        page.go_back()
        until(lambda: page.evaluate("location.hash") == "#pi9")


def test_tile_that_has_the_keyboard_has_a_ring_around_its_picture(browser: Browser, eight: Fleet) -> None:
    with looking(browser, eight.url, color_scheme="light") as page:
        all_drawn(page, EIGHT, 1)
        page.keyboard.press("ArrowRight")
        image = Image.open(io.BytesIO(tile(page, "pi1").screenshot())).convert("RGB")
        middle, low = image.width // 2, image.height // 2
        for place in ((middle, 1), (1, low), (image.width - 2, low), (middle, image.height - 2)):
            assert image.getpixel(place) == (0x0B, 0x63, 0xCE), place


def test_browser_s_own_way_back_leads_to_where_one_was(browser: Browser, eight: Fleet) -> None:
    with looking(browser, eight.url) as page:
        all_drawn(page, EIGHT, 1)
        tile(page, "pi1").click()
        until(lambda: page.evaluate("location.hash") == "#pi1")
        page.keyboard.press("Escape")
        until(lambda: page.evaluate("document.activeElement.dataset.name") == "pi1")
        tile(page, "pi4").click()
        until(lambda: page.evaluate("location.hash") == "#pi4")
        page.go_back()
        until(lambda: page.evaluate("document.activeElement.dataset.name") == "pi4")


def test_tile_is_one_link_to_a_reader_of_screens(browser: Browser, eight: Fleet) -> None:
    with looking(browser, eight.url) as page:
        all_drawn(page, EIGHT, 1)
        tree = page.locator("main").aria_snapshot().splitlines()
        assert [line.strip() for line in tree if "link" in line] == [
            *(f'- link "{name}, LIVE":' for name in EIGHT),
            '- link "pi9, WAITING, waiting for its first picture":',
        ]
        tile(page, "pi2").click()
        page.get_by_role("link", name="pi2, LIVE: back to all cameras", exact=True).click()
        until(lambda: page.evaluate("location.hash") == "")


def test_tile_that_has_the_keyboard_is_not_read_aloud_each_second(browser: Browser) -> None:
    watch = """() => {
        window.said = { pi1: [], pi2: [] };
        for (const tile of document.querySelectorAll(".tile")) {
            const note = () => window.said[tile.dataset.name].push(tile.getAttribute("aria-label"));
            new MutationObserver(note).observe(tile, { attributeFilter: ["aria-label"] });
        }
    }"""
    with (
        Fleet({"pi1": None, "pi2": None}, stale_after_s=1, gone_after_s=600) as fleet,
        streamer.Sender(fleet.endpoint, "pi1") as sender,
        streamer.Sender(fleet.endpoint, "pi2") as other,
        looking(browser, fleet.url) as page,
    ):
        tile(page, "pi1").focus()
        page.evaluate(watch)
        sender.send(JPEG)
        other.send(JPEG)
        until(lambda: len([label for label in page.evaluate("said.pi2") if "STALE" in label]) >= 4, 30)
        told = [label for label in page.evaluate("said.pi1") if "STALE" in label]
        assert len(told) == 1
        tile(page, "pi2").focus()
        until(lambda: page.evaluate("said.pi1").index(told[0]) < len(page.evaluate("said.pi1")) - 1)


def test_keyboard_goes_along_from_one_camera_to_the_next(browser: Browser, eight: Fleet) -> None:
    held = "document.activeElement.dataset.name ?? document.activeElement.id"
    with looking(browser, f"{eight.url}#pi2") as page:
        all_drawn(page, ["pi2"])
        for key, name in (("ArrowRight", "pi3"), ("ArrowRight", "pi4"), ("ArrowLeft", "pi3")):
            page.keyboard.press(key)
            until(lambda name=name: page.evaluate(held) == name)  # type: ignore[misc]
        page.focus("#next")
        page.keyboard.press("Enter")
        until(lambda: tile(page, "pi4").is_visible())
        assert page.evaluate(held) == "next"


def test_screen_stays_on_while_the_wall_fills_it(browser: Browser, eight: Fleet) -> None:
    with looking(browser, "about:blank") as page:
        page.add_init_script(COUNT_LOCKS)
        page.goto(eight.url)
        all_drawn(page, ["pi1"])
        assert page.evaluate("window.locks") == 0
        for _ in range(2):
            page.keyboard.press("f")
            until(lambda: page.evaluate("document.fullscreenElement !== null && window.locks === 1"))
            page.keyboard.press("f")
            until(lambda: page.evaluate("document.fullscreenElement === null && window.locks === 0"))


def test_link_to_one_camera_and_saving_its_picture(browser: Browser, eight: Fleet, tmp_path: Path) -> None:
    with looking(browser, f"{eight.url}#pi5") as page:
        all_drawn(page, ["pi5"])
        assert [name for name in EIGHT if tile(page, name).is_visible()] == ["pi5"]
        with page.expect_download() as download:
            page.keyboard.press("s")
        assert re.fullmatch(r"pi5-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.jpg", download.value.suggested_filename)
        download.value.save_as(tmp_path / "saved.jpg")
        assert (tmp_path / "saved.jpg").read_bytes()[:2] == b"\xff\xd8"
        page.click("#back")
        until(lambda: tile(page, "pi1").is_visible())
    with looking(browser, f"{eight.url}#pi77") as page:
        notice = page.locator("#notice")
        until(lambda: "no camera pi77; there are: pi1, pi2," in notice.inner_text(), 15)
        assert tile(page, "pi1").is_visible()
    with looking(browser, f"{eight.url}#100%") as page:  # not what a name is encoded as
        until(lambda: "no camera 100%; there are: pi1, pi2," in page.locator("#notice").inner_text(), 15)
        all_drawn(page, EIGHT)


def test_saved_picture_is_named_after_when_it_came(browser: Browser) -> None:
    with (
        Fleet({"pi1": None, "pi2": None}, stale_after_s=1, gone_after_s=2) as fleet,
        streamer.Sender(fleet.endpoint, "pi1") as sender,
        looking(browser, f"{fleet.url}#pi2") as page,
    ):
        saved: list[str] = []
        page.on("download", lambda download: saved.append(download.suggested_filename))
        says(page, "pi2", "WAITING")
        sender.send(JPEG)
        until(fleet.live)
        came = datetime.now(UTC)
        page.keyboard.press("s")  # there is nothing to save
        page.keyboard.press("ArrowLeft")
        says(page, "pi1", r"gone, last seen ([4-9]|\d\d) s ago")
        with page.expect_download():
            page.keyboard.press("s")
        assert [name[:4] for name in saved] == ["pi1-"]
        stamp = datetime.strptime(saved[0], "pi1-%Y-%m-%dT%H-%M-%S.jpg").replace(tzinfo=UTC)
        assert abs((stamp - came).total_seconds()) < 3


def test_key_that_is_held_saves_one_picture(browser: Browser, eight: Fleet) -> None:
    count = """() => {
        window.saved = window.filled = 0;
        HTMLAnchorElement.prototype.click = () => { window.saved += 1; };
        Element.prototype.requestFullscreen = () => { window.filled += 1; };
    }"""
    with looking(browser, f"{eight.url}#pi5") as page:
        all_drawn(page, ["pi5"])
        page.evaluate(count)
        for key in "sf":
            for _ in range(3):
                page.keyboard.down(key)
            page.keyboard.up(key)
        assert page.evaluate("[window.saved, window.filled]") == [1, 1]


def test_tab_that_nobody_sees_costs_nothing(browser: Browser, eight: Fleet) -> None:
    with looking(browser, eight.url) as page:
        all_drawn(page, EIGHT)
        hide = """hidden => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
        until(lambda: page.title() == "8 of 9 cameras live")
        page.evaluate(hide, True)
        assert page.title() == "Cameras", "it says nothing that it does not know"
        until(lambda: [row["cameras"] for row in eight.ask("api/viewers")] == [0])
        frames = eight.ask("api/viewers")[0]["frames"]
        received = eight.ask("api/cameras")[0]["frames"]
        until(lambda: eight.ask("api/cameras")[0]["frames"] > received + 30)
        assert eight.ask("api/viewers")[0]["frames"] == frames
        page.evaluate(hide, False)
        all_drawn(page, EIGHT)
        until(lambda: page.title() == "8 of 9 cameras live")


def test_page_says_that_the_hub_is_away_and_comes_back_by_itself(browser: Browser) -> None:
    with Fleet({"pi1": "pattern", "pi2": "pattern"}, stale_after_s=1) as fleet, looking(browser, fleet.url) as page:
        all_drawn(page, ["pi1", "pi2"])
        fleet.hub.process.kill()
        notice = page.locator("#notice")
        until(lambda: notice.inner_text() == "The hub does not answer. Trying again …", 15)
        said = page.evaluate_handle(CHANGES, "#notice")
        says(page, "pi1", "no picture for .* pi1 ▲ STALE")
        since = page.locator("#since")
        until(lambda: re.fullmatch(r"Last heard from ([3-9]|\d\d+) s ago\.", since.inner_text()))
        assert said.json_value() == [], "it is read aloud once, not every second"
        assert page.title() == "Cameras: the hub does not answer"
        fleet.restart_hub()
        all_drawn(page, ["pi1", "pi2"])
        until(lambda: not notice.is_visible())
        assert not since.is_visible()
        says(page, "pi1", "^pi1 ● LIVE")


def test_cameras_stay_where_they_are_while_the_hub_is_away(browser: Browser) -> None:
    # In this window nine pictures are largest in three columns, and beside the notice in five.
    with (
        Fleet({f"pi{number}": None for number in range(1, 10)}) as fleet,
        looking(browser, fleet.url, {"width": 1280, "height": 720}) as page,
    ):
        until(lambda: page.locator(".tile").count() == 9)
        columns = "getComputedStyle(document.getElementById('wall')).gridTemplateColumns.split(' ').length"
        assert page.evaluate(columns) == 3
        fleet.hub.process.kill()
        page.get_by_text("Last heard from").wait_for()
        page.evaluate("new Promise(requestAnimationFrame)")
        assert page.evaluate(columns) == 3


def test_wall_without_a_camera_says_how_to_send_one(browser: Browser) -> None:
    def look(bind: str | None, text: str) -> None:
        with streamer.Hub(bind) as hub, Wall(hub, "127.0.0.1", 0) as wall:
            text = text.replace("PORT", str(hub.endpoint).rpartition(":")[2])
            with looking(browser, f"http://127.0.0.1:{wall.port}/") as page:
                page.get_by_text(text, exact=True).wait_for()

    look("tcp://*:*", "No camera has come yet. On a camera: streamer send --hub tcp://ADDRESS-OF-THE-HUB:PORT")
    look(None, "No camera has come yet.")


@pytest.mark.parametrize(("path", "file"), [("", "index.html"), ("numbers", "numbers.html")])
def test_page_takes_a_newer_one_by_itself(
    browser: Browser, path: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _static_files()
    newer = {**files, file: files[file].replace(b">Cameras</a>", b">Newer</a>")}
    with streamer.Hub("tcp://127.0.0.1:*") as hub, contextlib.ExitStack() as stack:
        with Wall(hub, "127.0.0.1", 0) as wall:
            page = stack.enter_context(looking(browser, f"http://127.0.0.1:{wall.port}/{path}"))
            page.get_by_text("No camera has come yet.").wait_for()
            page.evaluate("window.isTheSame = true")
        page.get_by_text("The hub does not answer.").wait_for()
        with Wall(hub, "127.0.0.1", wall.port):
            page.get_by_text("The hub does not answer.").wait_for(state="hidden")
            page.get_by_text("No camera has come yet.").wait_for()
            assert page.evaluate("window.isTheSame")
        page.get_by_text("The hub does not answer.").wait_for()
        monkeypatch.setattr("streamer.wall._static_files", lambda: newer)
        with Wall(hub, "127.0.0.1", wall.port):  # of the same version
            page.get_by_role("link", name="Newer").wait_for()


@pytest.mark.parametrize("missing", [["worker.js"], ["worker.js", "feed.js"]], ids=" ".join)
def test_page_whose_parts_were_not_to_be_had_tries_again(browser: Browser, eight: Fleet, missing: list[str]) -> None:
    with looking(browser, "about:blank") as page:
        asked: list[str] = []

        def refuse_twice(route: Route) -> None:
            asked.append(route.request.url)
            if asked.count(asked[-1]) <= 2:
                route.abort()
            else:
                route.continue_()

        for file in missing:
            page.context.route(f"**/static/{file}", refuse_twice)
        page.goto(eight.url)
        tile(page, "pi1").wait_for(timeout=30_000)
        all_drawn(page, EIGHT)
        assert {url.rpartition("/")[2] for url in asked} == set(missing)


def test_picture_that_takes_longer_than_the_page_s_patience_is_shown(browser: Browser) -> None:
    noise = encode_jpeg(np.random.default_rng(1).integers(0, 255, (700, 1000, 3), np.uint8), 85)
    feed = _static_files()["feed.js"].decode()
    impatient = feed.replace("SILENCE_MS = 5000", "SILENCE_MS = 2500")
    assert impatient != feed
    with (
        Fleet({"pi1": None}, stale_after_s=600, gone_after_s=900) as fleet,
        streamer.Sender(fleet.endpoint, "pi1") as sender,
        SlowLine(fleet.url, len(noise) / 3.75) as line,
    ):
        sender.send(noise)
        until(fleet.live)
        with looking(browser, "about:blank") as page:
            page.context.route(
                "**/static/feed.js", lambda route: route.fulfill(body=impatient, content_type="text/javascript")
            )
            page.goto(line.url)
            all_drawn(page, ["pi1"], 1, 60)  # the first connection ends too soon
            assert len(fleet.ask("api/viewers")) == 1
            number = fleet.ask("api/viewers")[0]["id"]
            for _ in range(2):
                sender.send(noise)
                all_drawn(page, ["pi1"], 1, 60)
            assert [row["id"] for row in fleet.ask("api/viewers")] == [number], "the connection is the same"


def test_camera_that_sends_seldom_is_live(browser: Browser) -> None:
    with (
        Fleet({"pi1": None}, stale_after_s=0.5, gone_after_s=5) as fleet,
        streamer.Sender(fleet.endpoint, "pi1", every_s=1.0) as sender,
    ):
        ended = threading.Event()

        def play() -> None:
            while not ended.wait(1.0):
                sender.send(JPEG)

        player = threading.Thread(target=play)
        player.start()
        try:
            until(fleet.live)
            with looking(browser, fleet.url) as page:
                all_drawn(page, ["pi1"], 1)
                until(lambda: tile(page, "pi1").get_attribute("class") == "tile live")  # no longer empty
                page.evaluate(
                    "() => { const tile = document.querySelector('.tile'); window.seen = [];"
                    "new MutationObserver(() => window.seen.push(tile.className))"
                    ".observe(tile, { attributes: true, attributeFilter: ['class'] }); }"
                )
                all_drawn(page, ["pi1"], 4)
                assert page.evaluate("window.seen") == []
                says(page, "pi1", "^pi1 ● LIVE")
        finally:
            ended.set()
            player.join()


def test_two_senders_of_one_name_are_named(browser: Browser) -> None:
    with Fleet({"pi1": "pattern"}) as fleet, looking(browser, fleet.url) as page:
        says(page, "pi1", "^pi1 ● LIVE")
        fleet.start("pi1")
        says(page, "pi1", r"^127\.0\.0\.1 has this name too, and is refused pi1 ● LIVE")
        page.goto(fleet.url + "numbers")
        page.get_by_text("LIVE, 127.0.0.1 has this name too, and is refused").wait_for()


def test_slow_viewer_sees_less_and_moves_no_other(browser: Browser, eight: Fleet) -> None:
    def rate(page: Page) -> float:
        """Pictures drawn for one that the hub received, over a while."""

        def counts() -> tuple[int, int]:
            return sum(drawings(page).values()), sum(row["frames"] for row in eight.ask("api/cameras"))

        drawn, received = counts()
        until(lambda: counts()[1] > received + 500, 30)
        return (counts()[0] - drawn) / (counts()[1] - received)

    with looking(browser, eight.url) as quick:
        all_drawn(quick, EIGHT)
        alone = rate(quick), eight.ask("api/viewers")[0]["delay_ms"]
        with SlowLine(eight.url, 400e3) as line, looking(browser, line.url) as slow:
            all_drawn(slow, EIGHT, 1)
            assert rate(slow) < 0.5 * alone[0]
            beside = rate(quick), eight.ask("api/viewers")[0]["delay_ms"]
            assert beside[0] > 0.7 * alone[0], (alone, beside)
            assert beside[1] < 2 * alone[1] + 50, (alone, beside)
            all_drawn(slow, EIGHT, 1)
            assert eight.ask("api/viewers")[1]["delay_ms"] < 2000, "what it sees is not old"


def test_numbers(browser: Browser, eight: Fleet) -> None:
    evil = '<img src=x onerror="document.title=1"> & co'
    with looking(browser, eight.url, user_agent=evil) as page, looking(browser, f"{eight.url}numbers") as numbers:
        all_drawn(page, EIGHT)
        row = numbers.locator("#cameras tbody tr").first
        until(lambda: "pi1" in row.inner_text(), 15)
        words = " ".join(row.inner_text().split())
        assert re.match(r"pi1 ● LIVE [\d.]+ 30 [\d.]+ ±[\d.]+ ms [\d.]+ kB 320\W240 \d+ ", words), words
        assert row.locator("svg.curve").count() == 3
        viewer = numbers.locator("#viewers tbody tr").first
        until(lambda: "127.0.0.1 wall 9" in " ".join(viewer.inner_text().split()), 15)
        assert viewer.locator("td").last.inner_text() == evil
        assert numbers.locator("img").count() == 0
        link = row.locator("a")
        link.click()
        all_drawn(numbers, ["pi1"])
        until(lambda: [name for name in EIGHT if tile(numbers, name).is_visible()] == ["pi1"])


def test_numbers_of_a_deployed_camera_fit_a_laptop_s_screen(browser: Browser, eight: Fleet) -> None:
    row = Status("pi3", "STALE", fps=29.9, wanted_fps=30, age_s=17, latency_ms=12.3, latency_error_ms=0.4)
    row = replace(row, frames=12345678, dropped=1234, lost=12, reconnects=3, width=1920, height=1080, bytes_per_s=2.1e6)
    row = replace(row, address="192.168.1.13", release="0.1.0+0123456789ab")
    with looking(browser, f"{eight.url}numbers", {"width": 1280, "height": 720}) as page:
        page.route("**/api/cameras", lambda route: route.fulfill(json=[vars(row)]))
        release = page.get_by_text("0.1.0+01234567", exact=True)  # as long as in `streamer status`
        release.wait_for()
        assert release.get_attribute("title") == row.release
        assert page.locator(".scroll").first.evaluate("one => one.scrollWidth <= one.clientWidth")


def test_numbers_take_neither_the_keyboard_nor_a_selection_away(browser: Browser) -> None:
    with (
        Fleet({"pi1": "pattern", "pi2": None, "pi3": "pattern"}) as fleet,
        streamer.Sender(fleet.endpoint, "pi2a") as another,
        looking(browser, f"{fleet.url}numbers") as page,
    ):
        page.locator("#cameras tbody a").nth(2).focus()
        said = page.evaluate_handle(CHANGES, "#summary")
        script = "getSelection().selectAllChildren(document.querySelector('#cameras tbody td:nth-child(12)'))"
        page.evaluate(script)

        def frames() -> str:
            return page.locator("#cameras tbody tr").nth(2).locator("td").nth(6).inner_text()

        for _ in range(2):
            before = frames()
            until(lambda before=before: frames() != before)  # type: ignore[misc]
        assert said.json_value() == [], "what has not changed is not read aloud again"
        another.send(JPEG)
        until(lambda: page.locator("#cameras tbody tr").count() == 4)
        assert page.evaluate("document.activeElement.textContent") == "pi3"
        assert page.evaluate("getSelection().toString()") == "127.0.0.1"
        assert page.locator("#cameras tbody th").all_inner_texts() == ["pi1", "pi2", "pi2a", "pi3"]


def test_numbers_of_a_hub_that_says_nothing_are_said_to_be_old(browser: Browser) -> None:
    with Fleet({"pi1": "pattern"}) as fleet, looking(browser, "about:blank") as page:
        page.add_init_script(
            "{ const { timeout } = AbortSignal; AbortSignal.timeout = (ms) => timeout.call(AbortSignal, ms / 10); }"
        )
        page.goto(f"{fleet.url}numbers")
        notice = page.locator("#notice")
        page.locator("#cameras tbody th").wait_for()
        until(lambda: not notice.is_visible())
        fleet.hub.process.send_signal(signal.SIGSTOP)  # its connections stay
        try:
            until(lambda: notice.inner_text().startswith("The hub does not answer. These numbers are old."), 30)
        finally:
            fleet.hub.process.send_signal(signal.SIGCONT)
        until(lambda: not notice.is_visible(), 30)


def test_long_name_leaves_room_for_the_numbers_on_a_phone(browser: Browser) -> None:
    name = "a" * 64
    with Fleet({name: None}) as fleet, looking(browser, f"{fleet.url}numbers", PHONE) as page:
        head = page.locator("#cameras tbody th")
        head.wait_for()
        last = page.locator("#cameras tbody td").last
        last.scroll_into_view_if_needed()
        assert head.bounding_box()["width"] < PHONE["width"] / 2  # type: ignore[index]
        assert head.locator("a").get_attribute("title") == name


def test_one_camera_on_a_phone(browser: Browser) -> None:
    name = "a" * 64
    with Fleet({name: "pattern", "pi2": "pattern"}) as fleet, looking(browser, fleet.url, PHONE) as page:
        summary = page.locator("#summary")
        all_drawn(page, ["pi2"])
        assert summary.is_visible()
        page.goto(f"{fleet.url}#pi2")
        page.locator("#back").wait_for()
        assert not summary.is_visible(), "the buttons need its place"
        assert page.locator("header").evaluate("header => header.offsetHeight") < 40, "the buttons have one line"
        page.goto(f"{fleet.url}#pi3")
        page.get_by_text(f"There is no camera pi3; there are: {name}, pi2").wait_for()
        assert page.evaluate("document.scrollingElement.scrollWidth") == PHONE["width"]


@pytest.fixture(scope="module")
def sixteen() -> Iterator[Fleet]:
    with Fleet({f"pi{number}": "pattern" for number in range(1, 17)}, size="176x144") as fleet:
        yield fleet


@pytest.mark.parametrize("size", [DESKTOP, PHONE, {"width": 844, "height": 390}], ids=["desktop", "phone", "turned"])
def test_sixteen_fit_any_screen(browser: Browser, sixteen: Fleet, size: dict[str, int]) -> None:
    with looking(browser, sixteen.url, size) as page:
        names = [f"pi{number}" for number in range(1, 17)]
        all_drawn(page, names)
        # All in one moment: the tiles are laid out anew whenever there is reason to.
        boxes = page.locator(".tile canvas").evaluate_all("all => all.map(one => one.getBoundingClientRect().toJSON())")
        assert all(box["top"] >= 0 and box["left"] >= 0 for box in boxes)
        assert all(box["right"] <= size["width"] and box["bottom"] <= size["height"] for box in boxes)
        assert len({(box["left"], box["top"]) for box in boxes}) == 16
        assert page.evaluate("document.scrollingElement.scrollHeight <= innerHeight")
        assert page.evaluate(
            "document.getElementById('wall').scrollHeight <= document.getElementById('wall').clientHeight"
        )


def test_words_are_larger_on_a_large_screen(browser: Browser, eight: Fleet) -> None:
    sizes = []
    for width, height in ((1920, 1080), (3840, 2160)):
        with looking(browser, eight.url, {"width": width, "height": height}) as page:
            says(page, "pi1", "LIVE")
            text = page.locator(".caption, #summary, nav a")
            sizes.append(text.evaluate_all("all => [...new Set(all.map(one => getComputedStyle(one).fontSize))]"))
    assert [[round(float(size.removesuffix("px"))) for size in each] for each in sizes] == [[15], [25]]


def test_tiles_out_of_sight_are_asked_for_less(browser: Browser) -> None:
    names = [f"pi{number}" for number in range(1, 41)]
    playing = {"pi1": "pattern", "pi40": "pattern"}
    with (
        Fleet({name: playing.get(name) for name in names}, size="176x144") as fleet,
        looking(browser, fleet.url, PHONE) as page,
    ):
        until(lambda: tile(page, "pi40").count(), 15)
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
        all_drawn(page, ["pi1"], 30)
        assert drawings(page)["pi40"] < drawings(page)["pi1"] / 4
        tile(page, "pi40").scroll_into_view_if_needed()
        before = drawings(page)
        all_drawn(page, ["pi40"], 30)
        assert drawings(page)["pi1"] - before["pi1"] < 15


def test_camera_that_comes_moves_nobody_s_view(browser: Browser) -> None:
    with (
        Fleet({f"pi{number}": None for number in range(1, 41)}) as fleet,
        streamer.Sender(fleet.endpoint, "pi41") as another,
        looking(browser, fleet.url, PHONE) as page,
    ):
        tile(page, "pi1").focus()
        tile(page, "pi40").scroll_into_view_if_needed()
        before = page.evaluate("document.getElementById('wall').scrollTop")
        assert before > 1000
        another.send(JPEG)
        until(lambda: tile(page, "pi41").count())
        assert page.evaluate("document.activeElement.dataset.name") == "pi1"
        assert page.evaluate("document.getElementById('wall').scrollTop") == before


def test_notice_leaves_room_for_the_pictures(browser: Browser) -> None:
    names = [f"front-door-camera-{number}" for number in range(1, 61)]
    with Fleet(dict.fromkeys(names)) as fleet, looking(browser, f"{fleet.url}#pi3", PHONE) as page:
        page.get_by_text("There is no camera pi3; there are: ").wait_for()
        assert page.locator("#wall").evaluate("wall => wall.clientHeight") > PHONE["height"] / 2


PASSWORD = "korrekt horse <b>&"


def test_password_is_asked_for_once(browser: Browser) -> None:
    with Fleet({"pi1": "pattern"}, password=PASSWORD) as fleet, looking(browser, f"{fleet.url}#pi1") as page:
        assert page.locator("canvas").count() == 0
        page.fill("input[type=password]", "wrong horse")
        page.keyboard.press("Enter")
        page.get_by_text("Wrong password.").wait_for()
        page.fill("input[type=password]", PASSWORD)
        page.keyboard.press("Enter")
        tile(page, "pi1").wait_for()
        assert page.evaluate("location.pathname + location.hash") == "/#pi1"
        all_drawn(page, ["pi1"])
        fleet.hub.process.kill()
        until(lambda: page.locator("#notice").inner_text().startswith("The hub does not answer"), 15)
        fleet.restart_hub()
        all_drawn(page, ["pi1"])  # the cookie outlives the hub
        page.context.clear_cookies()
        fleet.hub.process.kill()
        fleet.restart_hub()
        page.locator("input[type=password]").wait_for(timeout=20_000)


def test_page_from_elsewhere_is_refused(browser: Browser, eight: Fleet) -> None:
    connect = """url => new Promise(done => {
        const socket = new WebSocket(url);
        socket.onmessage = () => done("let in");
        socket.onerror = () => done("refused");
    })"""
    socket = eight.url.replace("http", "ws") + "ws"
    with looking(browser, eight.url) as page:
        assert page.evaluate(connect, socket) == "let in"
    with Fleet({}) as elsewhere:
        context = browser.new_context(bypass_csp=True)  # elsewhere, a page sets its own
        page = context.new_page()
        page.goto(elsewhere.url)
        assert page.evaluate(connect, socket) == "refused"
        context.close()
