"""Who may look: asked of a real wall over real HTTP, TLS and a Unix socket."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import math
import os
import re
import socket
import ssl
import stat
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

import pytest
from aiohttp import web

import streamer
from streamer import cli, page
from streamer.cameras.pattern import Pattern
from streamer.config import read_password
from streamer.errors import ConfigError, TransportError
from streamer.page import UnixConnection
from streamer.presence import Status
from streamer.wall import Wall, access
from streamer.wall.access import Access, Throttle, tls_context, unix_socket
from tests.conftest import make_certificate, until
from tests.peers import listener

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Certificate

PASSWORD = "correct horse ä"
BROWSER = {
    "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0",
}
SCRIPT = BROWSER | {"Accept": "*/*"}
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
}
# Every route that shows something, and one that there is not.
ASKED = ["/", "/api/cameras", "/snapshot/pi1.jpg", "/stream/pi1.mjpg", "/ws", "/metrics", "/nothing", "/static/a/b"]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str


@pytest.fixture(scope="module")
def hub() -> Iterator[streamer.Hub]:
    # However long the tests take, its camera is not GONE.
    with streamer.Hub("tcp://127.0.0.1:*", cameras=["pi9"], gone_after_s=3600) as hub:
        assert hub.endpoint
        with streamer.Sender(hub.endpoint, name="pi1") as sender:
            sender.send(Pattern("pi1", (176, 144), 1000, 85).read()[0])
            until(lambda: hub.latest("pi1"))
        yield hub


@contextmanager
def serving(hub: streamer.Hub, password: str = "", host: str = "127.0.0.1", **options: Any) -> Iterator[Wall]:
    with Wall(hub, host, 0, access=Access(host, password), **options) as wall:
        yield wall


@pytest.fixture
def wall(hub: streamer.Hub) -> Iterator[Wall]:
    """Asks for the password; what is wrong is counted anew in every test."""
    with serving(hub, PASSWORD) as wall:
        yield wall


@pytest.fixture(scope="module")
def opened(hub: streamer.Hub) -> Iterator[Wall]:
    """Listens on loopback and asks nobody."""
    with serving(hub) as wall:
        yield wall


def ask(
    wall: Wall,
    path: str,
    headers: dict[str, str] | None = None,
    *,
    form: dict[str, str] | None = None,
    method: str = "GET",
    client: str = "127.0.0.1",
) -> Answer:
    """Ask without following where an answer leads; of an endless stream only the start is read."""
    connection = http.client.HTTPConnection("127.0.0.1", wall.port, timeout=10, source_address=(client, 0))
    headers = dict(headers or {})
    if form is not None:
        method = "POST"
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    with closing(connection):
        connection.request(method, path, urlencode(form) if form is not None else None, headers)
        answer = connection.getresponse()
        endless = answer.headers.get_content_type() == "multipart/x-mixed-replace"
        with answer:
            return Answer(answer.status, dict(answer.headers), "" if endless else answer.read().decode("latin-1"))


def basic(password: str, user: str = "tool") -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def log_in(wall: Wall, password: str = PASSWORD, path: str = "/", **options: Any) -> Answer:
    return ask(wall, "/login", BROWSER, form={"password": password, "next": path}, **options)


def cookie_of(answer: Answer) -> dict[str, str]:
    return {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}


# -- who is asked


@pytest.mark.parametrize("path", ["/", "/api/cameras", "/snapshot/pi1.jpg", "/stream/pi1.mjpg", "/healthz"])
def test_loopback_asks_nobody(opened: Wall, path: str) -> None:
    assert ask(opened, path).status == 200
    assert ask(opened, path, BROWSER).status == 200


def test_wall_without_an_access_of_its_own_asks_nobody(hub: streamer.Hub) -> None:
    with Wall(hub, "127.0.0.1", 0) as wall:
        assert ask(wall, "/api/cameras").status == 200
        assert ask(wall, "/api/cameras", {"Host": "evil.example"}).status == 403


@pytest.mark.parametrize("path", ASKED)
def test_password_on_loopback_is_asked_for_too(wall: Wall, path: str) -> None:
    answer = ask(wall, path)
    assert (answer.status, answer.text) == (401, "the password is needed\n")
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="cameras", charset="UTF-8"'


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_asked_too(wall: Wall, method: str) -> None:
    assert ask(wall, "/api/cameras", method=method).status == 401


def test_open_wall_on_the_network_asks_nobody_whatever_it_is_called(hub: streamer.Hub) -> None:
    with serving(hub, host="0.0.0.0") as wall:
        assert ask(wall, "/api/cameras", {"Host": "wall.example:8080"}).status == 200


def test_health_is_open_and_says_nothing(wall: Wall) -> None:
    assert ask(wall, "/healthz")[::2] == (200, "ok\n")


def test_health_is_told_under_any_name(opened: Wall) -> None:
    assert ask(opened, "/healthz", {"Host": "anything.example"}).status == 200


def test_login_page_and_what_it_needs_are_open(wall: Wall) -> None:
    page = ask(wall, "/login", BROWSER)
    assert page.status == 200
    needed = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert needed
    for file in needed:
        assert ask(wall, file, SCRIPT).status == 200


@pytest.mark.parametrize(
    "path", ["/static/../api/cameras", "/static/%2e%2e/api/cameras", "//api/cameras", "/login/../"]
)
def test_no_path_leads_round(wall: Wall, path: str) -> None:
    assert ask(wall, path).status in (401, 404)


# -- tools


def test_tool_needs_the_password_and_no_name(wall: Wall) -> None:
    for user in ("", "anybody"):
        assert ask(wall, "/api/cameras", basic(PASSWORD, user)).status == 200
    assert ask(wall, "/stream/pi1.mjpg", basic(PASSWORD)).status == 200
    scheme, _, credentials = basic(PASSWORD)["Authorization"].partition(" ")
    assert ask(wall, "/api/cameras", {"Authorization": f"{scheme.lower()}  {credentials}"}).status == 200


@pytest.mark.parametrize(
    "header",
    [
        basic("wrong password")["Authorization"],
        basic(PASSWORD + "x")["Authorization"],
        basic("")["Authorization"],
        "Basic",
        "Basic ?",
        "Basic \u00e4",
        basic(PASSWORD)["Authorization"].replace(" ", " ?"),
        f"Basic {base64.b64encode(PASSWORD.encode()).decode()}",  # no colon
        f"Bearer {PASSWORD}",
    ],
)
def test_tool_with_another_password_is_refused(wall: Wall, header: str) -> None:
    answer = ask(wall, "/api/cameras", {"Authorization": header})
    assert answer.status == 401
    assert answer.text == ("the password is needed\n" if header.startswith("Bearer") else "wrong password\n")
    assert "WWW-Authenticate" in answer.headers


def test_browser_that_has_sent_a_wrong_password_asks_for_another(wall: Wall) -> None:
    assert "WWW-Authenticate" in ask(wall, "/api/cameras", SCRIPT | basic("the old password")).headers


def test_script_of_a_page_is_refused_without_the_browser_s_own_dialogue(wall: Wall) -> None:
    answer = ask(wall, "/api/cameras", SCRIPT)
    assert answer.status == 401
    assert "WWW-Authenticate" not in answer.headers


# -- browsers


def test_browser_is_led_to_the_login_and_back(wall: Wall) -> None:
    assert ask(wall, "/", BROWSER).headers["Location"] == "/login"
    led = ask(wall, "/stream/pi1.mjpg?a=%26&b=%C3%A4", BROWSER)
    assert (led.status, led.headers["Cache-Control"]) == (303, "no-store")
    page = ask(wall, led.headers["Location"], BROWSER)
    wanted = re.search(r'name="next" value="([^"]*)"', page.text)
    assert wanted is not None
    entered = log_in(wall, path=wanted[1].replace("&amp;", "&"))
    assert (entered.status, entered.headers["Location"]) == (303, "/stream/pi1.mjpg?a=%26&b=%C3%A4")
    assert ask(wall, "/stream/pi1.mjpg", BROWSER | cookie_of(entered)).status == 200


def test_form_works_without_script_and_carries_nothing_inline(wall: Wall) -> None:
    page = ask(wall, "/login", BROWSER)
    # To where it stands: so the fragment of the page that was wanted is kept, of which the hub knows nothing.
    assert '<form method="post">' in page.text
    assert '<input id="password" name="password" type="password"' in page.text
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=", page.text)


def test_cookie_is_kept_from_scripts_and_from_other_sites(wall: Wall) -> None:
    parts = log_in(wall).headers["Set-Cookie"].split("; ")
    assert parts[0].startswith("streamer=")
    assert set(parts[1:]) == {"HttpOnly", "SameSite=Lax", "Path=/", f"Max-Age={30 * 24 * 3600}"}


def test_wrong_password_is_said_in_the_form(wall: Wall) -> None:
    answer = log_in(wall, "wrong password", "/snapshot/pi1.jpg")
    assert answer.status == 403
    assert '<p id="problem" role="alert">Wrong password.</p>' in answer.text
    assert 'value="/snapshot/pi1.jpg"' in answer.text
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"password",
        b"password=",
        b"\xff\xfe",
        b"password=%ff%00",
        b"a=1&" * 2000,
        pytest.param(b"a=1&" * 16 + urlencode({"password": PASSWORD}).encode(), id="too many fields"),
    ],
)
def test_form_that_is_none_is_a_wrong_password(wall: Wall, body: bytes) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", wall.port, timeout=10)) as connection:
        connection.request("POST", "/login", body, {"Content-Type": "multipart/form-data; charset=x"})
        assert connection.getresponse().status == 403


def test_form_that_is_too_large_is_refused_in_a_line(wall: Wall) -> None:
    answer = log_in(wall, "a" * 20_000)
    assert answer.status == 413
    assert re.fullmatch(r"Maximum request body size 16384 exceeded.*", answer.text)


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\r\nX-Evil: 1",
        "https://evil.example/",
        "javascript:alert(1)",
        "evil.example",
        "/a\\..\\..\\evil.example",
        "/ä",
        "/" + "a" * 5000,
        "",
    ],
)
def test_login_leads_to_no_other_site(wall: Wall, path: str) -> None:
    entered = log_in(wall, path=path)
    assert (entered.status, entered.headers["Location"]) == (303, "/")
    assert "X-Evil" not in entered.headers
    shown = ask(wall, f"/login?{urlencode({'next': path})}", BROWSER)
    assert 'name="next" value="/"' in shown.text
    again = ask(wall, f"/login?{urlencode({'next': path})}", BROWSER | cookie_of(entered))
    assert (again.status, again.headers["Location"]) == (303, "/")


def test_nothing_that_was_asked_for_gets_into_a_page_unescaped(wall: Wall) -> None:
    evil = '/"><script>alert(1)</script>'
    for answer in (
        ask(wall, f"/login?{urlencode({'next': evil})}", BROWSER),
        log_in(wall, "wrong password", evil),
    ):
        assert "<script" not in answer.text
        assert "&quot;&gt;&lt;script&gt;" in answer.text
    pass_in = basic(PASSWORD)
    for path in ("/snapshot/%3Cscript%3E.jpg", "/static/%3Cscript%3E", "/%3Cscript%3E"):
        answer = ask(wall, path, BROWSER | pass_in)
        assert answer.status == 404
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_logout_takes_the_cookie_away(wall: Wall) -> None:
    cookie = cookie_of(log_in(wall))
    answer = ask(wall, "/logout", BROWSER | cookie)
    assert (answer.status, answer.headers["Location"]) == (303, "/login")
    assert {'streamer=""', "Max-Age=0", "Path=/"} <= set(answer.headers["Set-Cookie"].split("; "))
    assert ask(wall, "/api/cameras", cookie).status == 200, "from the browser only, as the README says"
    # Else whoever is no longer in would be led to the login, and from there back to here.
    assert ask(wall, "/logout", BROWSER).headers["Location"] == "/login"


def test_login_where_nobody_is_asked_leads_on(opened: Wall) -> None:
    assert ask(opened, "/login?next=/api/cameras", BROWSER).headers["Location"] == "/api/cameras"
    entered = log_in(opened, "whatever it is")
    assert (entered.status, entered.headers["Location"]) == (303, "/")
    assert "Set-Cookie" not in entered.headers


# -- the cookie


def with_token(wall: Wall, token: str) -> int:
    return ask(wall, "/api/cameras", {"Cookie": f"streamer={token}"}).status


def test_cookie_survives_a_restart_and_dies_with_the_password(hub: streamer.Hub, wall: Wall) -> None:
    cookie = cookie_of(log_in(wall))
    with serving(hub, PASSWORD) as restarted:
        assert ask(restarted, "/api/cameras", cookie).status == 200
    with serving(hub, "another password") as changed:
        assert ask(changed, "/api/cameras", cookie).status == 401


def test_cookie_ends_after_30_days(wall: Wall) -> None:
    lifetime_s, now_s = 30 * 24 * 3600, time.time()
    mint = Access("127.0.0.1", PASSWORD)
    assert with_token(wall, mint.token(now_s)) == 200
    assert with_token(wall, mint.token(now_s - lifetime_s + 60)) == 200
    assert with_token(wall, mint.token(now_s - lifetime_s - 1)) == 401


def test_tampered_cookie_is_none(wall: Wall) -> None:
    token = Access("127.0.0.1", PASSWORD).token(time.time())
    expires, _, signature = token.partition(".")
    other = "0" if signature[-1] != "0" else "1"
    assert with_token(wall, token) == 200
    for bad in (
        f"{int(expires) + 1}.{signature}",
        f"{expires}.{signature[:-1]}{other}",
        f"{expires}.{signature[:-1]}",
        f"{expires}.",
        f"{expires}0.{signature}",
        f".{signature}",
        f"never.{signature}",
        expires,
        "",
        ".",
        "\u00e4.\u00e4",
    ):
        assert with_token(wall, bad) == 401


def test_each_login_signs_only_its_own_end() -> None:
    mint = Access("127.0.0.1", PASSWORD)
    assert mint.token(1000.9) == mint.token(1000.1)
    assert mint.token(1000) != mint.token(1001)
    assert PASSWORD not in mint.token(1000)
    # As it has always been, so that cookies outlive an upgrade; and of a key that takes long to try.
    signature = "48a9add7ee6607ac7d7c2e470873dcb82754272704be5155aaa084de75104554"
    assert mint.token(1000) == f"{1000 + 30 * 24 * 3600}.{signature}"


# -- too many tries


def fail(wall: Wall, times: int, client: str = "127.0.0.1") -> list[int]:
    return [log_in(wall, f"wrong {number}", client=client).status for number in range(times)]


def test_client_with_too_many_tries_waits(wall: Wall, caplog: pytest.LogCaptureFixture) -> None:
    cookie = cookie_of(log_in(wall))
    assert fail(wall, 5) == [403] * 5
    assert [record.message for record in caplog.records if record.name == access.__name__] == [
        "5 different wrong passwords from 127.0.0.1; it has to wait"
    ]
    locked = log_in(wall)
    assert (locked.status, "Set-Cookie" in locked.headers) == (429, False)
    wait_s = int(locked.headers["Retry-After"])
    assert 50 <= wait_s <= 60
    assert f"Too many wrong passwords. Wait {wait_s} s." in locked.text
    tool = ask(wall, "/api/cameras", basic(PASSWORD))
    assert (tool.status, 50 <= int(tool.headers["Retry-After"]) <= 60) == (429, True)
    assert tool.text == f"too many wrong passwords: wait {tool.headers['Retry-After']} s\n"
    assert ask(wall, "/api/cameras", cookie).status == 200, "who is in stays in"
    assert ask(wall, "/healthz").status == 200
    assert log_in(wall, client="127.0.0.2").status == 303, "others do not wait"


def test_tools_and_forms_are_counted_together_and_requests_without_a_password_are_not(wall: Wall) -> None:
    for _ in range(8):
        assert ask(wall, "/api/cameras").status == 401
    for number in range(3):
        assert ask(wall, "/api/cameras", basic(f"wrong password {number}")).status == 401
    assert fail(wall, 3) == [403, 403, 429]


def test_who_has_to_wait_is_told_before_the_form_is_read(wall: Wall) -> None:
    fail(wall, 5)
    with closing(http.client.HTTPConnection("127.0.0.1", wall.port, timeout=5)) as connection:
        connection.putrequest("POST", "/login?next=/numbers")
        connection.putheader("Content-Length", "99")
        connection.endheaders(b"password=")
        answer = connection.getresponse()
        assert answer.status == 429
        assert b'name="next" value="/numbers"' in answer.read()


def test_part_of_a_second_is_waited_for_too(wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Throttle, "wait_s", lambda *_: 0.01)
    locked = log_in(wall)
    assert (locked.status, locked.headers["Retry-After"]) == (429, "1")


def test_waiting_ends(wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "TRIES_WITHIN_S", 0.3)
    assert fail(wall, 4) == [403] * 4
    until(lambda: log_in(wall).status == 303)


def test_program_with_an_old_password_locks_nobody_out(wall: Wall) -> None:
    for _ in range(20):
        assert ask(wall, "/api/cameras", basic("the old password")).status == 401
    assert fail(wall, 2) == [403, 403]
    assert log_in(wall).status == 303
    assert ask(wall, "/api/cameras", basic(PASSWORD)).status == 200
    assert fail(wall, 4) == [403, 403, 403, 403], "the first two once more, then two new ones"
    assert log_in(wall).status == 429


def many(throttle: Throttle, client: str, *tries: tuple[bytes, float]) -> None:
    for digest, now in tries:
        throttle.failed(client, digest, now)


def test_throttle_looks_at_the_last_minute() -> None:
    throttle = Throttle()
    many(throttle, "a", (b"1", 0.0), (b"2", 10.0), (b"3", 20.0), (b"4", 30.0))
    assert throttle.wait_s("a", 30.0) == 0
    throttle.failed("a", b"5", 40.0)
    assert throttle.wait_s("a", 40.0) == 20.0
    assert throttle.wait_s("b", 40.0) == 0
    assert throttle.wait_s("a", 60.0) == throttle.wait_s("a", 1000.0) == 0
    throttle.failed("a", b"6", 60.0)  # the last five began at 10
    assert throttle.wait_s("a", 60.0) == 10.0


def test_throttle_counts_the_same_again_once_and_lets_no_more_guesses_through_for_it() -> None:
    throttle = Throttle()
    guessed: list[float] = []
    for now in range(600):
        if not throttle.wait_s("a", now):
            throttle.failed("a", b"old", now)
        if not throttle.wait_s("a", now):
            guessed.append(now)
            throttle.failed("a", b"%d" % now, now)
    assert len(guessed) >= 10 * 4, "beside an old password, whoever has another is let try"
    assert all(sum(now <= other < now + 60 for other in guessed) <= 5 for now in guessed)


def test_throttle_forgets_who_failed_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "CLIENTS", 3)
    throttle = Throttle()
    for client in ("a", "b", "c"):
        many(throttle, client, *((b"%d" % number, 0.0) for number in range(6)))
    throttle.failed("a", b"6", 1.0)
    throttle.failed("d", b"0", 1.0)
    throttle.failed("d", b"0", 1.0)
    assert [client for client in "abcd" if throttle.wait_s(client, 2.0)] == ["a", "c"]
    assert len(throttle._failures) == 3
    assert all(len(failures) <= 5 for failures in throttle._failures.values())


def test_throttle_forgets_all_but_a_thousand() -> None:
    throttle = Throttle()
    for number in range(2000):
        throttle.failed(f"{number}", b"1", 0.0)
    assert len(throttle._failures) == 1024


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_ipv6_host_counts_as_one(address: str, client: str) -> None:
    assert access._client(address) == client


# -- pages from elsewhere


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "127.0.0.1:8080", True),
        ("http://127.0.0.1:8080", "127.0.0.1:8080", True),
        ("http://LOCALHOST:8080", "localhost:8080", True),
        ("http://localhost", "localhost", True),
        ("http://localhost", "localhost:80", True),
        ("https://localhost", "localhost", True),
        ("https://localhost", "localhost:443", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("http://localhost:8081", "localhost:8080", False),
        ("http://localhost", "localhost:8080", False),
        ("https://localhost", "localhost:80", False),
        ("http://evil.example", "localhost:8080", False),
        ("http://localhost:8080.evil.example", "localhost:8080", False),
        ("http://127.0.0.1.evil.example:8080", "127.0.0.1:8080", False),
        ("null", "127.0.0.1:8080", False),
        ("", "127.0.0.1:8080", False),
        ("http://[", "127.0.0.1:8080", False),
        ("file://", "127.0.0.1:8080", False),
    ],
)
def test_websocket_of_another_page_is_refused(opened: Wall, origin: str | None, host: str, allowed: bool) -> None:
    headers = UPGRADE | {"Host": host} | ({"Origin": origin} if origin is not None else {})
    answer = ask(opened, "/ws-of-no-handler", headers)
    assert (answer.status != 403) == allowed, answer
    if not allowed:
        assert answer.text == f"a page from {origin!r} may not do this here\n"


def test_websocket_needs_origin_and_password(wall: Wall) -> None:
    host = f"127.0.0.1:{wall.port}"
    cookie = cookie_of(log_in(wall))
    assert ask(wall, "/ws", UPGRADE | {"Origin": f"http://{host}"} | SCRIPT).status == 401
    assert ask(wall, "/ws", UPGRADE | {"Origin": "http://evil.example"} | cookie).status == 403
    assert ask(wall, "/ws", UPGRADE | {"Origin": "http://evil.example", "Upgrade": "WebSocket"} | cookie).status == 403
    assert ask(wall, "/ws", UPGRADE | {"Origin": "null", "Host": "["} | cookie).status == 403
    assert ask(wall, "/ws", UPGRADE | {"Origin": f"http://{host}"} | cookie).status not in (401, 403)


def test_page_from_elsewhere_cannot_send_the_form(wall: Wall) -> None:
    form = {"password": PASSWORD}
    assert ask(wall, "/login", {"Origin": "http://evil.example"}, form=form).status == 403
    assert ask(wall, "/login", {"Origin": f"http://127.0.0.1:{wall.port}"}, form=form).status == 303


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "192.0.2.1", "[::1]:8080"])
def test_names_of_a_loopback_wall(opened: Wall, host: str) -> None:
    assert ask(opened, "/api/cameras", {"Host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "a:b:c"]
)
@pytest.mark.parametrize("path", ["/", "/api/cameras", "/login", "/static/icon.svg"])
def test_name_that_somebody_led_to_loopback_is_refused(opened: Wall, host: str, path: str) -> None:
    answer = ask(opened, path, BROWSER | {"Host": host})
    assert answer.status == 403
    assert re.fullmatch(r"this is not '.*': open it as localhost, or by its address\n", answer.text)


def test_with_a_password_any_name_will_do(wall: Wall) -> None:
    assert ask(wall, "/api/cameras", {"Host": "cameras.example"} | basic(PASSWORD)).status == 200


# -- headers


@pytest.mark.parametrize(
    "path",
    [*ASKED, "/login", "/logout", "/healthz", "/static/wall.js", "/static/login.css", "/static/nothing"],
)
@pytest.mark.parametrize("headers", [{}, BROWSER, basic(PASSWORD), {"Host": "evil.example\\"}], ids=str)
def test_every_answer_has_its_headers(wall: Wall, path: str, headers: dict[str, str]) -> None:
    answer = ask(wall, path, headers)
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    connect = policy.pop("connect-src")
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "worker-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'self'",
    }
    assert connect == ("'self'" if "Host" in headers else f"'self' ws://127.0.0.1:{wall.port}")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    # With no-referrer a browser would send the form with `Origin: null`.
    assert answer.headers["Referrer-Policy"] == ("same-origin" if path == "/login" else "no-referrer")
    assert answer.headers["Cache-Control"] in ("no-store", "no-cache", "no-cache, private")
    kept = ("/", "/static/", "/snapshot/")
    assert answer.headers["Cache-Control"] == "no-store" or path.startswith(kept[1:]) or path == kept[0]
    assert answer.headers["Server"] == "streamer"


def test_headers_of_what_goes_wrong_inside(opened: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened._history, "table", None)  # asked for nowhere else: the wall goes on
    answer = ask(opened, "/api/history", BROWSER)
    assert answer.status == 500
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("request_", [b"GET / \x00HTTP/1.1\r\n\r\n", b"\x16\x03\x01\r\n\r\n"])
@pytest.mark.parametrize("by_socket", [False, True], ids=["TCP", "socket"])
def test_headers_of_the_answer_to_no_request(
    hub: streamer.Hub, tmp_path: Path, request_: bytes, by_socket: bool
) -> None:
    with (
        serving(hub, socket=tmp_path / "hub.sock") as wall,
        socket.socket(socket.AF_UNIX if by_socket else socket.AF_INET) as client,
    ):
        client.connect(str(tmp_path / "hub.sock") if by_socket else ("127.0.0.1", wall.port))
        client.sendall(request_)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        with answer:
            assert answer.status == 400
            assert answer.headers["Server"] == "streamer"
            assert answer.headers["Content-Security-Policy"] == "default-src 'none'"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("host", "password", "pictures"),
    [
        ("127.0.0.1", "", "same-site"),
        ("0.0.0.0", PASSWORD, "same-site"),
        ("0.0.0.0", "", "cross-origin"),  # for a page of Home Assistant's
    ],
)
def test_pictures_may_stand_in_pages_that_may_see_them(
    hub: streamer.Hub, host: str, password: str, pictures: str
) -> None:
    with serving(hub, password, host) as wall:
        for path in ("/snapshot/pi1.jpg", "/stream/pi1.mjpg"):
            assert ask(wall, path, basic(password)).headers["Cross-Origin-Resource-Policy"] == pictures
        for path in ("/", "/api/cameras", "/healthz", "/static/wall.css"):
            assert ask(wall, path, basic(password)).headers["Cross-Origin-Resource-Policy"] == "same-origin"


# -- TLS


def test_tls(hub: streamer.Hub, certificate: Certificate) -> None:
    trust = ssl.create_default_context(cafile=certificate.certificate)
    with serving(hub, PASSWORD, tls=tls_context(*certificate)) as wall:
        with closing(http.client.HTTPSConnection("localhost", wall.port, timeout=10, context=trust)) as connection:
            connection.request("POST", "/login", urlencode({"password": PASSWORD}), BROWSER)
            answer = connection.getresponse()
            assert answer.status == 303
            cookie = answer.headers["Set-Cookie"]
            assert "; Secure" in cookie
            assert f" wss://localhost:{wall.port};" in answer.headers["Content-Security-Policy"]
            answer.read()
            connection.request("GET", "/api/cameras", headers={"Cookie": cookie.partition(";")[0]})
            assert connection.getresponse().status == 200
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(wall, "/healthz")  # without TLS


def test_tls_files_that_are_wrong_are_named(certificate: Certificate, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.pem"
    other = make_certificate(tmp_path, "-passout", "pass:secret")
    (tmp_path / "words").write_text("no certificate")
    for given, error in (
        ((nowhere, certificate.key), f"tls_certificate: {nowhere}: No such file or directory"),
        ((certificate.certificate, tmp_path), f"tls_key: {tmp_path}: Is a directory"),
        (other, "they must be a PEM certificate and its own key, without a passphrase$"),
        ((other.certificate, certificate.key), r"its own key, without a passphrase \(KEY_VALUES_MISMATCH\)"),
        (
            (tmp_path / "words", certificate.key),
            f"tls_certificate {tmp_path}/words and tls_key {certificate.key}: they",
        ),
    ):
        with pytest.raises(ConfigError, match=error):
            tls_context(*given)


# -- the Unix socket


def test_socket_lets_in_whoever_may_open_it(hub: streamer.Hub, tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    with serving(hub, PASSWORD, socket=path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        for host in ("localhost", "anything"):
            with closing(UnixConnection(str(path))) as connection:
                connection.request("GET", "/api/cameras", headers={"Host": host})
                assert connection.getresponse().status == 200
    assert not path.exists()


def test_socket_that_a_dead_hub_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    unix_socket(path).close()
    assert path.is_socket()
    unix_socket(path).close()


def test_socket_of_a_living_hub_is_left_alone(hub: streamer.Hub, tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    with serving(hub, socket=path):
        refusal = pytest.raises(TransportError, match=f"cannot listen on {path}: Address already in use")
        with refusal, serving(hub, socket=path):
            pass
        assert path.is_socket()


def test_socket_that_cannot_be_made_is_named(hub: streamer.Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "other"))
        for path, why in (
            (tmp_path / "none" / "hub.sock", "No such file or directory"),
            (tmp_path / "file", "it exists already and is not a socket"),
            (tmp_path, "it exists already and is not a socket"),
            (tmp_path / "other", "Protocol wrong type for socket"),
            (tmp_path / ("a" * 200), "AF_UNIX path too long"),
        ):
            with pytest.raises(TransportError) as refused, serving(hub, socket=path):
                pass
            assert str(refused.value) == f"cannot listen on {path}: {why}"
    assert (tmp_path / "file").read_text() == "kept"
    assert (tmp_path / "other").is_socket()


# -- streamer status


def status(*arguments: str) -> int:
    return cli.main(["status", "--json", *arguments])


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n", encoding="utf-8")
    assert read_password(file) == PASSWORD
    return str(file)


def test_status_sends_the_password(wall: Wall, password_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    hub = f"http://127.0.0.1:{wall.port}"
    assert status("--hub", hub, "--password-file", password_file) == 0
    assert '"name": "pi1"' in capsys.readouterr().out
    for written in (hub, hub.replace("//", "//any:SECRET@")):  # as in the address of a stream
        assert status("--hub", written) == 2
        told = f"streamer: {hub}/api/cameras asks for a password: give --password-file FILE\n"
        assert capsys.readouterr().err == told
    Path(password_file).write_text("wrong password")
    assert status("--hub", hub, "--password-file", password_file) == 2
    assert capsys.readouterr().err == f"streamer: {password_file}: does not have the password of {hub}/api/cameras\n"
    fail(wall, 4)
    assert status("--hub", hub, "--password-file", password_file) == 1
    assert re.search(r"/api/cameras: too many wrong passwords: wait \d+ s\n$", capsys.readouterr().err)


def test_status_by_the_socket(
    hub: streamer.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hub.sock"
    assert status("--hub", f"unix:{path}") == 1
    error = f"streamer: no hub answers at unix:{path}: No such file or directory\n"
    assert capsys.readouterr().err == error
    monkeypatch.setattr(cli, "_HUB_SOCKET", str(path))
    assert cli._hub_here() == "http://127.0.0.1:8080"
    with serving(hub, PASSWORD, socket=path):
        assert status("--hub", f"unix:{path}") == 0
        assert status() == 0
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert cli._hub_here() == "http://127.0.0.1:8080", "who may not open it asks the page"


def test_status_over_tls(
    hub: streamer.Hub, certificate: Certificate, password_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(hub, PASSWORD, tls=tls_context(*certificate)) as wall:
        page = f"https://localhost:{wall.port}/"
        assert status("--hub", page, "--password-file", password_file) == 2
        refused = capsys.readouterr().err
        assert re.fullmatch(
            rf"streamer: {page}api/cameras: its certificate is not trusted \(self.signed certificate\): "
            "give --ca-file FILE with the certificate to trust\n",
            refused,
        )
        trusted = ["--password-file", password_file, "--ca-file", str(certificate.certificate)]
        assert status("--hub", page, *trusted) == 0
        assert status("--hub", page, "--ca-file", password_file) == 2
        assert f"--ca-file {password_file}: has no PEM certificate" in capsys.readouterr().err
        assert status("--hub", f"http://localhost:{wall.port}", "--password-file", password_file) == 1
        assert capsys.readouterr().err.endswith(": is it https:// there?\n")


def test_status_of_what_is_no_page(opened: Wall, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"127.0.0.1:{opened.port}"
    for hub, error in (
        (
            f"https://{place}",
            rf"no hub answers at https://{place}/api/cameras: TLS fails \(.*\): is it http:// there\?",
        ),
        (
            f"http://{place}/numbers/",
            rf"what answers at http://{place}/numbers/api/cameras is not a hub \(HTTP 404 .*\): is it http://{place}\?",
        ),
    ):
        assert status("--hub", hub) == 1
        assert re.fullmatch(f"streamer: {error}\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("answer", "error"), [(b"", "Remote end closed connection without response"), (b"SSH-2.0\r\n", "SSH-2.0\\r\\n")]
)
def test_status_of_what_speaks_no_http(
    answer: bytes, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hub.sock"
    with closing(unix_socket(path)) as server:
        server.listen()

        def speak() -> None:
            with server.accept()[0] as client:
                client.recv(1000)
                client.sendall(answer)

        thread = threading.Thread(target=speak)
        thread.start()
        assert status("--hub", f"unix:{path}") == 1
        thread.join()
    assert capsys.readouterr().err == f"streamer: no hub answers at unix:{path}: {error}\n"


def table(**told: object) -> str:
    """A hub's table of one camera, of which it tells something else."""
    return json.dumps([dataclasses.asdict(Status("pi1", "LIVE")) | told])


@pytest.mark.parametrize(
    "body",
    [
        "<html>",
        "{}",
        '["pi1"]',
        '[{"name": "pi1"}]',
        pytest.param("[" * 100_000, id="deep"),
        pytest.param(" " * 5_000_000 + "[]", id="long"),
        table(name=["pi1"]),
        table(name="pi1\x1b]0;title\x07"),
        table(release="\n"),
        table(frames="1"),
        table(fps=None),
        table(fps=10**400),
        table(age_s=math.nan),
    ],
)
def test_status_of_what_is_no_table(
    body: str, opened: Wall, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("streamer.wall._json", lambda _: web.Response(text=body))
    assert status("--hub", f"http://127.0.0.1:{opened.port}/") == 1
    assert capsys.readouterr().err.endswith("/api/cameras is not a hub (HTTP 200 OK)\n")


def test_status_of_a_later_hub_may_tell_more(opened: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.wall._json", lambda _: web.Response(text=table(later=["more"])))
    assert status("--hub", f"http://127.0.0.1:{opened.port}/") == 0


def test_status_of_a_hub_whose_answer_never_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "_WITHIN_S", 2.0)
    with listener() as (server, endpoint):
        ended = threading.Event()

        def drip() -> None:
            with server.accept()[0] as client, suppress(ConnectionError):
                client.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not ended.wait(0.05):
                    client.sendall(b"a")

        thread = threading.Thread(target=drip)
        thread.start()
        assert status("--hub", endpoint.replace("tcp", "http")) == 1
        ended.set()
        thread.join()
    assert capsys.readouterr().err.endswith("/api/cameras is not a hub (HTTP 200 OK)\n")


def test_hub_says_that_it_is_https(
    certificate: Certificate, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "hub.yml"
    config.write_text(f"tls_certificate: {certificate.certificate}\ntls_key: {certificate.key}\n")
    monkeypatch.setattr(cli.Signals, "wait", lambda *_: True)
    assert cli.main(["hub", "--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0", "--config", str(config)]) == 0
    assert re.search(r"^wall: https://127\.0\.0\.1:\d+/$", capfd.readouterr().out, re.MULTILINE)


def test_no_header_makes_a_client_local(wall: Wall) -> None:
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        assert ask(wall, "/api/cameras", {header: "127.0.0.1"}).status == 401
