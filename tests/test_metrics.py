"""What `/metrics` says, and that a real Prometheus, the alerts and the dashboard understand it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import yaml
import zmq
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

import streamer
from streamer.presence import Status
from streamer.wall import Wall
from streamer.wall.metrics import Metrics
from tests.conftest import HubClock, until
from tests.peers import JPEG, LOCAL, raw

if TYPE_CHECKING:
    from collections.abc import Iterator

MONITORING = Path(__file__).parents[1] / "monitoring"
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))
ALERT_TESTS = "../tests/data/alerts.yml"
RULES = {rule["alert"]: rule for group in ALERTS["groups"] for rule in group["rules"]}
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}
QUERIES = [target["expr"] for panel in PANELS.values() for target in panel["targets"]]
OPENMETRICS = "application/openmetrics-text"

PROGRAMS = ("prometheus", "promtool")
needs_prometheus = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)) and "CI" not in os.environ, reason=f"needs {' '.join(PROGRAMS)}"
)

ROW = Status(
    name="pi1",
    state="LIVE",
    fps=29.9,
    age_s=0.25,
    latency_ms=12.5,
    frames=100,
    dropped=3,
    lost=2,
    width=640,
    height=480,
    bytes_per_s=1e6,
    address="192.0.2.1",
    latency_error_ms=0.5,
    wanted_fps=30.0,
    reconnects=4,
    release="0.1.0+abc",
    bytes=5_000_000,
    rival="192.0.2.2",
    still_s=61.5,
)
BARE = Status("pi2", "LIVE", age_s=0.25, frames=1)


@pytest.fixture
def hub(hub_clock: HubClock) -> Iterator[streamer.Hub]:
    with streamer.Hub(LOCAL, cameras=["pi1", "pi9"]) as hub:
        yield hub


@pytest.fixture
def wall(hub: streamer.Hub) -> Iterator[Wall]:
    with Wall(hub, "127.0.0.1", 0) as wall:
        yield wall


def text_of(hub: streamer.Hub) -> str:
    return Metrics(hub, viewers=lambda: 5, viewer_frames=lambda: 70).text("")[0].decode()


def samples(text: str) -> dict[str, float]:
    """Every sample by its name and labels, as they stand there."""
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }


def show(hub: streamer.Hub, monkeypatch: pytest.MonkeyPatch, *rows: Status) -> dict[str, float]:
    """What is said about these cameras."""
    monkeypatch.setattr(hub, "cameras", lambda: list(rows))
    return samples(text_of(hub))


def get(url: str, accept: str = "") -> tuple[str, str]:
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def scrape(wall: Wall) -> dict[str, float]:
    return samples(get(f"http://127.0.0.1:{wall.port}/metrics")[1])


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:streamer|process)_\w+", expression))


# -- names and texts


def test_names_and_types_follow_prometheus_rules(hub: streamer.Hub) -> None:
    families = list(text_string_to_metric_families(text_of(hub)))
    assert len(families) > 20
    for family in families:
        assert re.fullmatch(r"(streamer_(camera|hub|build)|process)(_[a-z]+)*", family.name)
        assert family.documentation.endswith(".")
        assert family.type in {"counter", "gauge"}
        assert not re.search(r"_(ms|millis|kb|kilo|min|minutes|hours|ns|hz|count|total)(_|$)", family.name)
        suffix = "_total" if family.type == "counter" else ""
        assert {sample.name for sample in family.samples} <= {family.name + suffix}


@needs_prometheus
def test_promtool_has_nothing_against_them(hub: streamer.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cameras", lambda: [ROW, BARE])
    check = ["promtool", "check", "metrics"]
    done = subprocess.run(check, input=text_of(hub), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- values


def test_values_are_those_of_the_hub_in_seconds_and_bytes(hub: streamer.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamer.Hub, "refused", 6)
    said = show(hub, monkeypatch, ROW)
    process = {name: value for name, value in said.items() if name.startswith("process_")}
    assert {name: value for name, value in said.items() if name not in process} == {
        'streamer_camera_up{camera="pi1"}': 1,
        'streamer_camera_age_seconds{camera="pi1"}': 0.25,
        'streamer_camera_frames_total{camera="pi1"}': 100,
        'streamer_camera_received_bytes_total{camera="pi1"}': 5_000_000,
        'streamer_camera_dropped_frames_total{camera="pi1"}': 3,
        'streamer_camera_lost_frames_total{camera="pi1"}': 2,
        'streamer_camera_reconnects_total{camera="pi1"}': 4,
        'streamer_camera_wanted_frames_per_second{camera="pi1"}': 30,
        'streamer_camera_latency_seconds{camera="pi1"}': 0.0125,
        'streamer_camera_latency_uncertainty_seconds{camera="pi1"}': 0.0005,
        'streamer_camera_name_contested{camera="pi1"}': 1,
        'streamer_camera_still_seconds{camera="pi1"}': 61.5,
        'streamer_camera_width_pixels{camera="pi1"}': 640,
        'streamer_camera_height_pixels{camera="pi1"}': 480,
        'streamer_camera_info{address="192.0.2.1",camera="pi1",release="0.1.0+abc"}': 1,
        'streamer_hub_cameras{state="WAITING"}': 0,
        'streamer_hub_cameras{state="LIVE"}': 1,
        'streamer_hub_cameras{state="STALE"}': 0,
        'streamer_hub_cameras{state="GONE"}': 0,
        "streamer_hub_expected_cameras": 2,
        "streamer_hub_refused_messages_total": 6,
        "streamer_hub_viewers": 5,
        "streamer_hub_viewer_frames_total": 70,
        f'streamer_build_info{{version="{streamer.__version__}"}}': 1,
    }
    if sys.platform == "linux":
        assert {"process_cpu_seconds_total", "process_start_time_seconds", "process_open_fds"} <= set(process)


def test_what_is_not_known_is_not_said(hub: streamer.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    said = show(hub, monkeypatch, BARE)
    assert {re.sub(r"{.*", "", name) for name in said if 'camera="' in name} == {
        "streamer_camera_up",
        "streamer_camera_age_seconds",
        "streamer_camera_frames_total",
        "streamer_camera_received_bytes_total",
        "streamer_camera_dropped_frames_total",
        "streamer_camera_lost_frames_total",
        "streamer_camera_reconnects_total",
        "streamer_camera_name_contested",
        "streamer_camera_still_seconds",
        "streamer_camera_info",
    }


@pytest.mark.parametrize(
    ("name", "state", "up"),
    [
        ("pi1", "WAITING", 0),
        ("pi1", "LIVE", 1),
        ("pi1", "STALE", 0),
        ("pi1", "GONE", 0),
        ("strange", "LIVE", 1),
        ("strange", "STALE", 0),
        ("strange", "GONE", None),
    ],
)
def test_only_an_expected_camera_is_spoken_of_when_it_is_gone(
    name: str, state: str, up: int | None, hub: streamer.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = show(hub, monkeypatch, dataclasses.replace(ROW, name=name, state=state))
    assert said.get(f'streamer_camera_up{{camera="{name}"}}') == up
    has_readings = any(f'camera="{name}"' in sample and "_up" not in sample for sample in said)
    assert has_readings == (state in {"LIVE", "STALE"})
    assert said[f'streamer_hub_cameras{{state="{state}"}}'] == 1


def test_two_hubs_in_one_program_do_not_mix(hub: streamer.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with streamer.Hub(LOCAL) as other:
        assert show(hub, monkeypatch, ROW)['streamer_camera_up{camera="pi1"}'] == 1
        assert "camera=" not in text_of(other)


# -- over HTTP, with real senders


def test_a_real_hub_s_counts_go_by_its_cameras_coming_and_going(
    hub: streamer.Hub, wall: Wall, hub_clock: HubClock
) -> None:
    assert hub.endpoint
    assert scrape(wall)['streamer_camera_up{camera="pi1"}'] == 0
    with streamer.Sender(hub.endpoint, name="pi1") as sender, streamer.Sender(hub.endpoint, name="strange") as other:
        for count in range(1, 4):
            sender.send(JPEG)
            other.send(JPEG)
            until(lambda count=count: [row.frames for row in hub.cameras()] == [count, 0, count])  # type: ignore[misc]
        said = scrape(wall)
    for name in ("pi1", "strange"):
        assert said[f'streamer_camera_up{{camera="{name}"}}'] == 1
        assert said[f'streamer_camera_frames_total{{camera="{name}"}}'] == 3
        assert said[f'streamer_camera_received_bytes_total{{camera="{name}"}}'] == 3 * len(JPEG)
    assert said['streamer_hub_cameras{state="LIVE"}'] == 2
    hub_clock.ahead_s += hub.gone_after_s
    until(lambda: scrape(wall)['streamer_hub_cameras{state="GONE"}'] == 2)
    assert {name: value for name, value in scrape(wall).items() if "camera=" in name} == {
        'streamer_camera_up{camera="pi1"}': 0,
        'streamer_camera_up{camera="pi9"}': 0,
    }


def test_every_refused_message_counts(hub: streamer.Hub, wall: Wall) -> None:
    assert hub.endpoint
    with raw(zmq.REQ, connect=hub.endpoint) as stranger:
        for count in range(1, 131):  # more than the hub remembers to tell
            stranger.send_multipart([b'{"msg": "pi1", "dtype": "uint8", "shape": [2, %d]}' % (count + 1), b"x"])
            assert stranger.recv().startswith(b"ERR ")
    assert scrape(wall)["streamer_hub_refused_messages_total"] == 130


def test_viewers_and_what_they_are_sent_count(hub: streamer.Hub, wall: Wall) -> None:
    assert hub.endpoint
    with streamer.Sender(hub.endpoint, name="pi1") as sender:
        sender.send(JPEG)
        until(lambda: hub.latest("pi1"))
        with urllib.request.urlopen(f"http://127.0.0.1:{wall.port}/stream/pi1.mjpg", timeout=10) as stream:
            assert stream.read(len(JPEG))
            until(lambda: scrape(wall)["streamer_hub_viewer_frames_total"] == 1)
            assert scrape(wall)["streamer_hub_viewers"] == 1
        until(lambda: scrape(wall)["streamer_hub_viewers"] == 0)
        assert scrape(wall)["streamer_hub_viewer_frames_total"] == 1, "a counter never goes back"


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        f"{OPENMETRICS};version=x",
        "text/plain;version=1.x",
        ";;,",
    ],
)
def test_prometheus_text_unless_asked_otherwise(wall: Wall, accept: str) -> None:
    content_type, text = get(f"http://127.0.0.1:{wall.port}/metrics", accept)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE streamer_camera_frames_total counter\n" in text


@hypothesis.settings(max_examples=300, deadline=None, database=None, derandomize=True)
@hypothesis.given(
    kind=st.sampled_from([OPENMETRICS, "text/plain"]),
    version=st.text("019.x² -", max_size=6),
    escaping=st.sampled_from(["", ";escaping", ";escaping=allow-utf-8", ";escaping=x"]),
)
def test_any_accept_header_has_an_answer(metrics: Metrics, kind: str, version: str, escaping: str) -> None:
    body, content_type = metrics.text(f"{kind};version={version}{escaping}")
    assert b"streamer_build" in body
    assert content_type.startswith((OPENMETRICS, "text/plain"))


@pytest.fixture(scope="module")
def metrics() -> Iterator[Metrics]:
    with streamer.Hub(LOCAL) as hub:
        yield Metrics(hub, viewers=lambda: 0, viewer_frames=lambda: 0)


def test_openmetrics_when_asked_for(hub: streamer.Hub, wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cameras", lambda: [ROW])
    # What Prometheus itself asks for.
    accept = f"{OPENMETRICS};version=1.0.0,{OPENMETRICS};version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5"
    content_type, text = get(f"http://127.0.0.1:{wall.port}/metrics", accept)
    assert content_type.startswith(f"{OPENMETRICS}; version=")
    parse: Any = openmetrics.text_string_to_metric_families  # the library gives it no types
    families = {family.name: family for family in parse(text)}
    assert (families["streamer_camera_latency_seconds"].unit, families["streamer_camera"].type) == ("seconds", "info")


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "streamer.wall.metrics")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(streamer.MissingExtraError, match=r"extra 'hub': .*apt install python3-prometheus-client \(a "):
        importlib.import_module("streamer.wall.metrics")


# -- the alerts


def described(hub: streamer.Hub) -> set[str]:
    """The names that samples can have."""
    return set(re.findall(r"^# TYPE (\w+) ", text_of(hub), re.MULTILINE))


@pytest.mark.parametrize("alert", RULES)
def test_alert_reads_what_there_is_and_says_what_to_do(alert: str, hub: streamer.Hub) -> None:
    rule = RULES[alert]
    assert names_in(rule["expr"]) <= described(hub)
    assert names_in(rule["expr"]) or 'up{job="streamer"}' in rule["expr"]
    assert re.fullmatch(r"Streamer[A-Z][A-Za-z]+", alert)
    assert re.fullmatch(r"\d+m", rule["for"])
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description"}
    subject = "camera" if "streamer_camera_" in rule["expr"] else "instance" if "instance" in str(rule) else ""
    assert f"$labels.{subject}" in rule["annotations"]["summary"] or not subject


def test_every_alert_is_tried() -> None:
    assert set(re.findall(r'alertname(?:="|: )(\w+)', (MONITORING / ALERT_TESTS).read_text(encoding="utf-8"))) == set(
        RULES
    )


@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "alerts.yml"), ("check", "config", "prometheus.yml"), ("test", "rules", ALERT_TESTS)],
    ids=" ".join,
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# -- the dashboard


def test_dashboard_reads_what_there_is(hub: streamer.Hub) -> None:
    read = names_in(json.dumps(DASHBOARD))
    assert read <= described(hub)
    # For alerts alone: how the states are spread, since there is a line for every camera.
    assert {name for name in described(hub) - read if name.startswith("streamer_")} == {"streamer_hub_cameras"}


@pytest.mark.parametrize("title", PANELS)
def test_panel_has_unit_description_legend_and_the_chosen_source(title: str) -> None:
    panel = PANELS[title]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert panel["description"].endswith(".")
    assert all(target["legendFormat"] != "__auto" or target["format"] == "table" for target in panel["targets"])
    assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_panels_neither_overlap_nor_share_an_id() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_dashboard_can_be_narrowed_to_a_hub_and_cameras() -> None:
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "hub", "camera"]
    everywhere = [target["expr"] for title in ("Cameras", "Alerts firing") for target in PANELS[title]["targets"]]
    for query in QUERIES:
        assert "$hub" in query or query in everywhere
        assert "$camera" in query or "streamer_camera_" not in query or query in everywhere


# -- a real Prometheus


class Prometheus:
    """One that runs, by its HTTP API."""

    def __init__(self, url: str) -> None:
        self._url = url

    def is_ready(self) -> bool:
        try:
            get(f"{self._url}/-/ready")
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False
        return True

    def api(self, path: str, **parameters: str) -> Any:
        answer = json.loads(get(f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")[1])
        assert answer["status"] == "success"
        return answer["data"]

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the series that a query finds now."""
        found: list[dict[str, Any]] = self.api("query", query=query)["result"]
        return found


@contextlib.contextmanager
def run_prometheus(place: Path, target: str) -> Iterator[Prometheus]:
    """Scrape a hub twice a second, otherwise by the configuration that is shipped."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MONITORING / "alerts.yml")]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    file = place / "prometheus.yml"
    file.write_text(json.dumps(config), encoding="utf-8")  # which is YAML too
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={place}", f"--web.listen-address={address}"]
    with (place / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            prometheus = Prometheus(f"http://{address}")
            until(prometheus.is_ready, 60)
            yield prometheus
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, streamer.Hub]]:
    """A Prometheus that has seen two cameras of three send for a while, and their hub, which gets no more frames."""
    with contextlib.ExitStack() as open_parts:
        hub = open_parts.enter_context(streamer.Hub(LOCAL, cameras=["pi1", "pi2", "pi3"], gone_after_s=600))
        wall = open_parts.enter_context(Wall(hub, "127.0.0.1", 0))
        place = tmp_path_factory.mktemp("prometheus")
        prometheus = open_parts.enter_context(run_prometheus(place, f"127.0.0.1:{wall.port}"))
        assert hub.endpoint
        ended = threading.Event()
        with contextlib.ExitStack() as sending:
            senders = [sending.enter_context(streamer.Sender(hub.endpoint, f"pi{n}", every_s=0.05)) for n in (1, 2)]

            def send() -> None:
                while not ended.wait(0.05):
                    for sender in senders:
                        sender.send(JPEG)

            thread = threading.Thread(target=send)
            thread.start()
            sending.callback(thread.join)
            sending.callback(ended.set)
            until(lambda: prometheus.ask("count_over_time(streamer_camera_frames_total[1m]) >= 4"), 60)
            until(lambda: all(rule["health"] != "unknown" for rule in rules(prometheus)), 60)
        yield prometheus, hub


def rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]


@needs_prometheus
def test_prometheus_reaches_the_hub_and_counts_what_it_counts(scraped: tuple[Prometheus, streamer.Hub]) -> None:
    prometheus, hub = scraped
    (up,) = prometheus.ask('up{job="streamer"}')
    assert up["value"][1] == "1"
    expected = {row.name: (row.frames, row.bytes) for row in hub.cameras() if row.frames}
    assert set(expected) == {"pi1", "pi2"}

    def counted() -> dict[str, tuple[int, ...]]:
        queries = ("streamer_camera_frames_total", "streamer_camera_received_bytes_total")
        columns = [{s["metric"]["camera"]: int(s["value"][1]) for s in prometheus.ask(query)} for query in queries]
        return {name: tuple(column[name] for column in columns) for name in columns[0]}

    until(lambda: counted() == expected)
    assert "pi3" in {series["metric"]["camera"] for series in prometheus.ask("streamer_camera_up == 0")}


@needs_prometheus
def test_prometheus_can_evaluate_every_alert(scraped: tuple[Prometheus, streamer.Hub]) -> None:
    assert {rule["name"]: rule.get("lastError", "") for rule in rules(scraped[0])} == dict.fromkeys(RULES, "")


@needs_prometheus
@pytest.mark.parametrize("query", dict.fromkeys(QUERIES))
def test_prometheus_finds_something_for_every_query_of_the_dashboard(
    query: str, scraped: tuple[Prometheus, streamer.Hub]
) -> None:
    prometheus, hub = scraped
    for name, value in {"$__rate_interval": "1m", "$__range": "1m", "$hub": ".+", "$camera": ".+"}.items():
        query = query.replace(name, value)
    found = prometheus.ask(query)
    has_samples = {re.sub(r"{.*", "", sample) for sample in samples(text_of(hub))}
    assert bool(found) == (names_in(query) <= has_samples)
