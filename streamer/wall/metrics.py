"""`/metrics`: the hub's counts for Prometheus, collected when scraped.

The hub's table is the only place that counts, so the numbers are those of `/api/cameras`, and receiving a frame costs
nothing more. `monitoring/` has alerts and a dashboard for these names.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import streamer
from streamer.errors import MissingExtraError
from streamer.presence import State

try:
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtraError("the hub's page", "hub", "python3-prometheus-client", error) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric

    from streamer.hub import Hub
    from streamer.presence import Status

_SHOWN = {State.LIVE, State.STALE}


class Metrics:
    """The text of `/metrics`.

    Args:
        hub: the hub to report on.
        viewers: returns how many viewers there are now.
        viewer_frames: returns how many frames were sent to viewers since the start.
    """

    def __init__(self, hub: Hub, *, viewers: Callable[[], int], viewer_frames: Callable[[], int]) -> None:
        # Not the library's global registry: two hubs in one program have two tables.
        self._registry = CollectorRegistry()
        self._registry.register(_Fleet(hub, viewers, viewer_frames))
        ProcessCollector(registry=self._registry)

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics as of now.

        Args:
            accept: the request's `Accept` header or "": chooses between Prometheus' text format and OpenMetrics.

        Returns:
            (body, content type)
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type


class _Reading(NamedTuple):
    """A metric of each camera, and how it is read from the camera's row."""

    kind: type[CounterMetricFamily | GaugeMetricFamily]
    name: str
    unit: str  # a suffix of the name, for OpenMetrics
    told: str
    of: Callable[[Status], float | None]


_READINGS = (
    _Reading(
        GaugeMetricFamily,
        "streamer_camera_age_seconds",
        "seconds",
        # Not the time at which it came: that would be compared with the clock of another machine.
        "Time since the camera's newest frame was received.",
        lambda row: row.age_s,
    ),
    _Reading(
        CounterMetricFamily,
        "streamer_camera_frames",
        "",
        "Frames received from the camera.",
        lambda row: row.frames,
    ),
    _Reading(
        CounterMetricFamily,
        "streamer_camera_received_bytes",
        "bytes",
        "Payload of the frames received from the camera.",
        lambda row: row.bytes,
    ),
    _Reading(
        CounterMetricFamily,
        "streamer_camera_dropped_frames",
        "",
        "Frames that the camera's sender skipped on purpose because a newer one was there.",
        lambda row: row.dropped,
    ),
    _Reading(
        CounterMetricFamily,
        "streamer_camera_lost_frames",
        "",
        "Frames that were sent and never came: gaps in the camera's sequence numbers.",
        lambda row: row.lost,
    ),
    _Reading(
        CounterMetricFamily,
        "streamer_camera_reconnects",
        "",
        "Times that the camera's frames went on over another connection, or from another start of its sender.",
        lambda row: row.reconnects,
    ),
    _Reading(
        GaugeMetricFamily,
        "streamer_camera_wanted_frames_per_second",
        "",
        "Rate at which the camera's sender means to send.",
        lambda row: row.wanted_fps,
    ),
    _Reading(
        GaugeMetricFamily,
        "streamer_camera_latency_seconds",
        "seconds",
        "Time from the sensor to the hub of the camera's newest frame.",
        lambda row: _seconds(row.latency_ms),
    ),
    _Reading(
        GaugeMetricFamily,
        "streamer_camera_latency_uncertainty_seconds",
        "seconds",
        "How much longer or shorter the latency may be, for what is not known of the two clocks.",
        lambda row: _seconds(row.latency_error_ms),
    ),
    _Reading(
        GaugeMetricFamily,
        "streamer_camera_name_contested",
        "",
        "Whether another sender has the camera's name too: 1 while its frames are refused, else 0.",
        lambda row: row.rival is not None,
    ),
    _Reading(
        GaugeMetricFamily,
        "streamer_camera_still_seconds",
        "seconds",
        "Time for which the camera's pictures have been the same, byte for byte; 0 until that is 10 s.",
        lambda row: row.still_s or 0.0,
    ),
    _Reading(
        GaugeMetricFamily,
        "streamer_camera_width_pixels",
        "pixels",
        "Width of the camera's newest picture.",
        lambda row: row.width,
    ),
    _Reading(
        GaugeMetricFamily,
        "streamer_camera_height_pixels",
        "pixels",
        "Height of the camera's newest picture.",
        lambda row: row.height,
    ),
)


class _Fleet(Collector):
    """Reads the hub's table anew at every scrape."""

    def __init__(self, hub: Hub, viewers: Callable[[], int], viewer_frames: Callable[[], int]) -> None:
        self._hub = hub
        self._viewers = viewers
        self._viewer_frames = viewer_frames

    def collect(self) -> Iterator[Metric]:
        rows = self._hub.cameras()
        yield from self._cameras(rows)
        yield from self._totals(rows)

    def _cameras(self, rows: list[Status]) -> Iterator[Metric]:
        # A camera that is GONE has no readings any more. Expected ones are still reported as down, so that an alert can
        # name them; others vanish.
        shown = [row for row in rows if row.state in _SHOWN]
        up = GaugeMetricFamily(
            "streamer_camera_up",
            "Whether the camera is LIVE: 1 while its frames come, else 0.",
            labels=["camera"],
        )
        for row in rows:
            if row.state in _SHOWN or row.name in self._hub.expected:
                up.add_metric([row.name], row.state == State.LIVE)
        yield up
        for reading in _READINGS:
            family = reading.kind(reading.name, reading.told, labels=["camera"], unit=reading.unit)
            for row in shown:
                value = reading.of(row)
                if value is not None:
                    family.add_metric([row.name], value)
            yield family
        about = InfoMetricFamily("streamer_camera", "The camera's address and its sender's release.", labels=["camera"])
        for row in shown:
            about.add_metric([row.name], {"address": row.address or "", "release": row.release or ""})
        yield about

    def _totals(self, rows: list[Status]) -> Iterator[Metric]:
        states = Counter(row.state for row in rows)
        cameras = GaugeMetricFamily("streamer_hub_cameras", "Cameras that the hub knows, by state.", labels=["state"])
        for state in State:
            cameras.add_metric([state], states[state])
        yield cameras
        yield GaugeMetricFamily(
            "streamer_hub_expected_cameras",
            "Cameras that the hub's configuration names.",
            len(self._hub.expected),
        )
        yield CounterMetricFamily(
            "streamer_hub_refused_messages",
            "Messages and connections that the hub refused: against the wire format, over a limit, or by key.",
            self._hub.refused,
        )
        yield GaugeMetricFamily("streamer_hub_viewers", "Pages and streams that are open now.", self._viewers())
        yield CounterMetricFamily("streamer_hub_viewer_frames", "Frames sent to viewers.", self._viewer_frames())
        yield InfoMetricFamily("streamer_build", "The hub's release.", {"version": streamer.__version__})


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
