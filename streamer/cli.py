"""The command line. Only this file prints, exits, handles signals and reads the environment."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import itertools
import json
import logging
import math
import os
import platform
import re
import resource
import select
import shlex
import signal
import socket
import subprocess  # nosec B404 # the demo is real processes
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import streamer
from streamer.errors import CameraError, ConfigError, MissingExtraError, StreamerError, one_line, reason, want
from streamer.systemd import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import FrameType

    from streamer.config import Config, Given
    from streamer.hub import Hub
    from streamer.page import Page
    from streamer.sender import Sender

_USAGE = 2  # exit status for what the user can put right
_FAILED = 1
_LOOK_S = 1.0
_READ_WITHIN_S = 0.1  # what is printed, else its reader is taken to stand still
_PIECE = 1000  # characters: a pipe that is ready takes 4,096 bytes (PIPE_BUF)
_DESCRIPTORS = 8192
_DEMO_PORTS = range(8080, 8100)
_WAIT_MAX_S = 86400
_UNKNOWN = "UNKNOWN"  # the state of a camera that the hub does not know
_HUB_SOCKET = "/run/streamer/hub.sock"  # where the role puts it
# The columns of `streamer status`, each with its place when a terminal has no room for all.
_COLUMNS = {
    "camera": 0,
    "state": 1,
    "fps": 2,
    "age s": 3,
    "latency ms": 4,
    "frames": 12,
    "dropped": 6,
    "lost": 5,
    "reconnects": 7,
    "size": 10,
    "kB/s": 11,
    "address": 8,
    "release": 9,
}
_TERMINAL_WIDTH = 80  # of one that does not tell
# argparse's messages, and ours instead.
_PHRASES = {
    r"argument (\S+): expected one argument": r"\1 needs a value",
    r"argument (\S+): ignored explicit argument .*": r"\1 takes no value",
    r"the following arguments are required: (.*)": r"\1 is missing",
}
_log = logging.getLogger("streamer")


class Signals:
    """Turns SIGINT and SIGTERM into an event that the main thread waits for.

    A `threading.Event` set by a handler can deadlock with its own wait; a pipe cannot.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before: dict[signal.Signals, Any] = {}
        self.caught = False

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds; return whether a signal has come."""
        if not self.caught:
            select.select([self._reader], [], [], timeout_s)
        return self.caught

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.caught = True


def entry_point() -> None:
    """Run the command line and end the process."""
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; by default those of the process.

    Returns:
        The exit status: 0 for done, 1 for failed, 2 for what the user can put right.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # it is None if it was closed
        sys.stdout.reconfigure(errors="replace")  # not every locale has a ± or an ellipsis
    status = _run(arguments)
    for stream in (sys.stdout, sys.stderr):
        try:
            print(end="", file=stream, flush=True)
        except OSError:
            # Reported already, or the reader is gone. Keep Python from flushing again at exit: it would end with 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


def _run(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        _set_up_logging()
        status: int = options.run(options)
    except SystemExit as ended:  # argparse has printed its message
        return int(ended.code or 0)
    except (ConfigError, MissingExtraError) as error:
        return _complain(error, _USAGE)
    except StreamerError as error:
        return _complain(error, _FAILED)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return _FAILED
    except Exception as error:
        if not (why := want(error)):
            raise
        return _complain(StreamerError(f"it cannot go on: {why}"), _FAILED)
    return status


def _complain(error: StreamerError, status: int) -> int:
    _say(f"streamer: {one_line(str(error))}")
    return status


def _say(text: str) -> None:
    """Print an error, if it can be and somebody reads it: there is nowhere else to say it."""
    with contextlib.suppress(OSError):
        if _is_read(sys.stderr):
            print(text, file=sys.stderr)


def _is_read(stream: TextIO | None, within_s: float = _READ_WITHIN_S) -> bool:
    """Whether a piece can be written, now or soon, without waiting for a reader that stands still."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), select.POLLOUT)  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):  # closed, or in memory
        return True
    return bool(poll.poll(within_s * 1000))


class _Log(logging.StreamHandler[TextIO]):
    """Logs to standard error, but never waits for its reader: a terminal after Ctrl-S, or a pipe that nobody empties.

    A thread that waits there would hold up every frame, and the end. What cannot be written is left out and counted.
    """

    _left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, or leave it out."""
        if left_out := self._left_out:
            if not _is_read(self.stream, 0):
                self._left_out += 1
                return
            self._left_out = 0
            many = "message is" if left_out == 1 else "messages are"
            text = f"nobody read this log for a while: {left_out} {many} left out"
            self.emit(logging.LogRecord(_log.name, logging.WARNING, __file__, 0, text, None, None))
        try:
            text = f"{self.format(record)}\n"
            for at in range(0, len(text), _PIECE):
                if not _is_read(self.stream):
                    self._left_out += 1
                    return
                self.stream.write(text[at : at + _PIECE])
                self.flush()
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)


class _UnprintedError(StreamerError):
    """Standard output cannot be written to."""


def _print(*lines: str) -> None:
    """Print lines at once, so that failures are noticed."""
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _UnprintedError(f"cannot print: {error.strerror}") from error


def _set_up_logging() -> None:
    under_systemd = "JOURNAL_STREAM" in os.environ  # the journal has the time
    form = "%(levelname)s: %(message)s" if under_systemd else "%(asctime)s %(levelname)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", handlers=[_Log()])
    # A camera that fails is reopened again and again, and its libraries would log up to ten lines each time.
    logging.getLogger("picamera2").setLevel(logging.WARNING)
    os.environ.setdefault("LIBCAMERA_LOG_LEVELS", "*:ERROR")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    # Of numpy, which is loaded with the first array: nothing here uses its threads, and where the system allows no
    # more, OpenBLAS interrupts the process, or crashes.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


class _Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments and refuse unknown ones here: a subcommand's parser suggests better than its parent."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown[0], self._option_string_actions)
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """Print the message and exit."""
        for theirs, ours in _PHRASES.items():
            message = re.sub(f"^{theirs}$", ours, message)
        self.exit(_USAGE, f"{self.prog}: {one_line(message)} ({self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:
            _print(message.rstrip())  # argparse would ignore a failure
        else:
            _say(message.rstrip())  # argparse minds a full disk or a closed output, in Debian 12's Python

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            self._refuse(value, action.choices)

    def _refuse(self, word: str, known: Iterable[str]) -> NoReturn:
        from streamer.config import nearest

        near = nearest(word.partition("=")[0], known)
        self.error(f"{shlex.quote(word)} is not known" + (f"; did you mean {near}?" if near else ""))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="streamer", description=streamer.__doc__)
    parser.add_argument("--version", action="version", version=f"streamer {streamer.__version__}")
    commands = _subparsers(parser, "send|hub|keys|demo|status")

    send = commands.add_parser("send", help="send a camera's pictures to a hub")
    send.set_defaults(run=_send)
    send.add_argument("--config", metavar="FILE", help="YAML file; --print-config shows one with every key")
    send.add_argument("--print-config", action="store_true", help="print the default file, with comments, and exit")
    send.add_argument(
        "--hub",
        action="append",
        dest="hubs",
        metavar="tcp://HOST:5555",
        help="the hub to send to; if repeated, frames go to the first that answers",
    )
    send.add_argument("--key", dest="curve_key_file", metavar="FILE", help="this camera's key pair, for encryption")
    send.add_argument(
        "--hub-key",
        action="append",
        dest="curve_hub_keys",
        metavar="curve-public:…",
        help="with --key: the hub's public key; repeated for a second hub",
    )
    send.add_argument("--publish", metavar="tcp://*:5555", help="instead of --hub: publish here, for subscribers")
    send.add_argument("--name", help="the camera's name at the hub; this host's name by default")
    send.add_argument(
        "--camera",
        metavar="picamera2|usb:0|usb:/dev/PATH|file:PATH|pattern",
        help="the Pi's own camera, a USB camera, a video file or a test card; picamera2 by default",
    )
    send.add_argument("--size", metavar="640x480", help="picture size, WIDTHxHEIGHT in pixels; 640x480 by default")
    send.add_argument("--fps", metavar="30", help="wanted frames per second, 0.1 to 240; 30 by default")
    send.add_argument("--quality", metavar="85", help="JPEG quality, 1 to 100; 85 by default")
    send.add_argument("--hflip", action="store_true", default=None, help="mirror left to right (picamera2)")
    send.add_argument("--vflip", action="store_true", default=None, help="mirror top to bottom (picamera2)")
    send.add_argument("--rotate", metavar="180", help="rotate by 0 or 180 degrees (picamera2)")

    hub = commands.add_parser("hub", help="receive cameras, show and serve them")
    hub.set_defaults(run=_hub)
    hub.add_argument("--config", metavar="FILE", help="YAML file; --print-config shows one with every key")
    hub.add_argument("--print-config", action="store_true", help="print the default file, with comments, and exit")
    hub.add_argument("--bind", metavar="tcp://*:5555", help="where senders connect")
    hub.add_argument("--key", dest="curve_key_file", metavar="FILE", help="the hub's key pair: senders must encrypt")
    hub.add_argument(
        "--allowed",
        dest="curve_allowed_file",
        metavar="FILE",
        help="with --key: who may send, in lines NAME curve-public:…",
    )
    hub.add_argument("--plain-bind", metavar="tcp://*:5556", help="with --key: a second address, without encryption")
    hub.add_argument(
        "--subscribe",
        action="append",
        metavar="tcp://HOST:5555",
        help="a sender that publishes, to receive from as well; may be repeated",
    )
    hub.add_argument("--http", metavar="127.0.0.1:8080", help="where the page is served")
    hub.add_argument(
        "--password-file",
        dest="http_password_file",
        metavar="FILE",
        help="its first line is the page's password, needed on an address that others reach",
    )
    hub.add_argument(
        "--open",
        action="store_true",
        default=None,
        dest="http_open",
        help="instead of --password-file: let everybody who reaches the page look",
    )
    hub.add_argument("--display", metavar="none|windows", help="windows: one window per camera on this screen")
    hub.add_argument("--layout", metavar="2x4", help="with --display windows: all cameras in one window, ROWSxCOLUMNS")
    hub.add_argument("--full-screen", action="store_true", default=None, help="with --layout: start in full screen")

    keys = commands.add_parser("keys", help="make and show keys, which encrypt and say who may send")
    verbs = _subparsers(keys, "make|show")
    for verb, does in (
        ("make", "make a key pair in a new file, 0600, and print its public half"),
        ("show", "print the public half of a key pair"),
    ):
        each = verbs.add_parser(verb, help=does)
        each.set_defaults(run=_keys, verb=verb)
        each.add_argument("file", metavar="FILE")

    demo = commands.add_parser("demo", help="a hub and test cameras on this machine, no hardware needed")
    demo.set_defaults(run=_demo)
    demo.add_argument("--cameras", default="8", metavar="8", help="how many, 1 to 64")
    demo.add_argument("--display", metavar="none|windows", help="windows: one window per camera on this screen")
    demo.add_argument("--layout", metavar="2x4", help="with --display windows: all cameras in one window, ROWSxCOLUMNS")

    status = commands.add_parser(
        "status",
        help="print a table of a hub's cameras",
        epilog="Exit status: 0, whatever the cameras' states; 1 if no hub answers or it knows no camera NAME, with "
        "--wait also unless all are LIVE and moving by then; 2 for a wrong flag, file, password or address.",
    )
    status.set_defaults(run=_status)
    status.add_argument("names", nargs="*", metavar="NAME", help="only these cameras")
    status.add_argument(
        "--hub",
        metavar="http://HOST:8080",
        help="the hub's page, https:// too, or unix:PATH; by default the hub on this machine",
    )
    status.add_argument("--password-file", metavar="FILE", help="its first line is the page's password")
    status.add_argument("--ca-file", metavar="FILE", help="PEM certificates to trust, for https://")
    status.add_argument("--wait", metavar="SECONDS", help="wait up to SECONDS for all to be LIVE and moving")
    status.add_argument("--json", action="store_true", help="print the API's JSON instead of the table")
    return parser


def _subparsers(parser: _Parser, metavar: str) -> argparse._SubParsersAction[_Parser]:
    """Add subcommands, of which one is required.

    Not by argparse's `required`: it would report a missing command before an unknown option.
    """
    parser.set_defaults(run=lambda _: parser.error(f"{metavar} is missing"))
    return parser.add_subparsers(metavar=metavar)


def _configured(cls: type[Config], options: argparse.Namespace) -> tuple[Given, Config]:
    """Read a configuration from its file and the flags, each named like a key; return both."""
    from dataclasses import fields

    from streamer.config import Given, checked, file_path, load, optional

    path = checked(optional(file_path), options.config, "--config")
    given = Given(path, {key.name: vars(options)[key.name] for key in fields(cls) if key.name in options})
    return given, load(cls, *given)


# -- send


def _send(options: argparse.Namespace) -> int:
    from streamer import cameras
    from streamer.config import SenderConfig, manual

    if options.print_config:
        _print(manual(SenderConfig).rstrip())
        return 0
    given, config = _configured(SenderConfig, options)
    if not config.hubs and not config.publish:
        where = given.place("hubs")
        raise ConfigError(f"{where}: give a hub to send to, tcp://HOST:5555, or else an address to publish on")
    name = config.name or socket.gethostname()
    open_camera = cameras.opener(
        config.camera,
        name=name,
        size=config.size,
        fps=config.fps,
        quality=config.quality,
        hflip=config.hflip,
        vflip=config.vflip,
        rotate=config.rotate,
        controls=config.controls,
        encoder=config.encoder,
    )

    from streamer.sender import Feed, Sender

    notifier = Notifier(os.environ.get("NOTIFY_SOCKET"))
    with Signals() as signals, ExitStack() as open_parts:
        open_parts.callback(notifier.close)
        with given.wording(config):
            sender = Sender(
                config.hubs,
                name,
                publish=config.publish,
                in_flight_limit=config.in_flight_limit,
                reply_timeout_s=config.reply_timeout_s,
                every_s=1 / config.fps,
                release=_release(),
                curve_key_file=config.curve_key_file,
                curve_hub_keys=config.curve_hub_keys,
            )
        open_parts.callback(sender.close)
        feed = Feed(open_camera, sender)
        open_parts.callback(feed.close)
        ready, pictures, turned = False, 0, 0.0
        while not signals.wait(_LOOK_S if ready else 0.05):
            failure = feed.failure or sender.failure
            if isinstance(failure, ConfigError):  # found only once the camera was open
                raise ConfigError(given.worded(str(failure), config))
            if failure:
                raise CameraError(f"{name}: {want(failure) or f'{type(failure).__name__}: {failure}'}")
            # New pictures and a loop that turns feed the watchdog; the hub's state does not matter.
            if feed.pictures > pictures and sender.turned > turned:
                if not ready:
                    notifier.ready()
                    ready = True
                notifier.watchdog()
                pictures, turned = feed.pictures, sender.turned
            if ready:
                notifier.status(f"{pictures} pictures; " + (sender.statistics.hub or "no hub answers"))
        notifier.stopping()
    if _is_read(sys.stdout):
        _summarise_sender(sender, publishes=bool(config.publish))
    return 0


def _release() -> str:
    """Return the release that runs: the name of the directory it was deployed to, else the package's version."""
    name, version = Path(sys.prefix).name, streamer.__version__
    return name if name.startswith(f"{version}+") else version


def _summarise_sender(sender: Sender, *, publishes: bool) -> None:
    done = sender.statistics
    refused = f" ({done.refused} of them refused)" if done.refused else ""
    answered = "" if publishes else f", {done.answered} answered{refused}"
    _print(f"{sender.name}: {done.frames} frames sent{answered}, {done.dropped} dropped")
    if done.last is None:
        return
    from streamer.codec import jpeg_size

    width, height = jpeg_size(done.last)
    rate = done.frames / done.elapsed_s if done.elapsed_s else 0.0
    raw = width * height * 3
    _print(
        f"Last JPEG: {done.last.nbytes} bytes; last image: {raw} bytes ({width}x{height}), "
        f"compression ratio {done.last.nbytes / raw:.3f}",
        f"Elapsed: {done.elapsed_s:.2f} s; {rate:.2f} frames/s",
    )


# -- hub


def _hub(options: argparse.Namespace) -> int:
    from streamer.config import HubConfig, manual, read_password

    if options.print_config:
        _print(manual(HubConfig).rstrip())
        return 0
    given, config = _configured(HubConfig, options)
    if config.display == "windows":
        if platform.system() == "Linux" and not os.environ.get("DISPLAY"):
            where = given.place("display")
            raise ConfigError(f"{where}: windows needs a screen, but DISPLAY is not set; run it on the desktop")
        from streamer.windows import GridWindow, Windows  # reports a missing extra before anything is started

    from streamer.hub import Hub
    from streamer.screen import wait_for_screen
    from streamer.wall import Wall
    from streamer.wall.access import Access, tls_context

    with given.wording(config):
        password = read_password(config.http_password_file) if config.http_password_file else ""
        tls = tls_context(config.tls_certificate, config.tls_key) if config.tls_certificate and config.tls_key else None
    access = Access(config.http.host, password)

    _allow_descriptors()
    notifier = Notifier(os.environ.get("NOTIFY_SOCKET"))
    with Signals() as signals, ExitStack() as open_parts:
        open_parts.callback(notifier.close)
        with given.wording(config):
            hub = Hub(
                config.bind,
                subscribe=config.subscribe,
                cameras=config.cameras,
                stale_after_s=config.stale_after_s,
                gone_after_s=config.gone_after_s,
                curve_key_file=config.curve_key_file,
                curve_allowed_file=config.curve_allowed_file,
                plain_bind=config.plain_bind,
            )
            open_parts.callback(hub.close)
            wall = Wall(hub, *config.http, access=access, tls=tls, socket=config.http_socket)
            open_parts.callback(wall.close)
        _announce(
            f"hub: {hub.endpoint}",
            *([f"plain: {hub.plain_endpoint}"] if hub.plain_endpoint else []),
            f"wall: {config.http._replace(port=wall.port).url(tls=tls is not None)}",
        )
        _say_who_may_send(hub, config.curve_allowed_file)
        notifier.ready()
        hub_turned, wall_turned, fed_at = hub.turned, wall.turned, 0.0

        def ended(timeout_s: float = 0.0) -> bool:
            """Feed the watchdog while both loops turn; return whether it is time to end."""
            nonlocal hub_turned, wall_turned, fed_at
            hub.check_failure()
            if wall.failure:
                raise StreamerError(f"the page has failed: {reason(wall.failure)}")
            now = time.monotonic()
            if now - fed_at >= _LOOK_S and hub.turned > hub_turned and wall.turned > wall_turned:
                notifier.watchdog()
                hub_turned, wall_turned, fed_at = hub.turned, wall.turned, now
            return signals.wait(timeout_s)

        if config.display != "windows":
            while not ended(_LOOK_S):
                pass
        elif screen := wait_for_screen(os.environ, ended):
            _skip_destructors()
            shared: dict[str, Any] = {"cameras": config.cameras, "width": config.window_width, "screen": screen}
            if config.layout:
                GridWindow(hub, **shared, layout=config.layout, full_screen=config.full_screen).run(ended)
            else:
                Windows(hub, **shared, rows=config.window_rows).run(ended)
        notifier.stopping()
    if _is_read(sys.stdout):
        _summarise_hub(hub)
    return 0


def _skip_destructors() -> None:
    """Make exit() of this thread end the process before any C++ destructor runs.

    Qt calls exit() when its screen goes away, which would destroy what other threads are decoding with. Exit handlers
    run in reverse order, and libraries register more of them later; but a thread's own destructors run before them all.
    So this registers one, which registers `_exit`; that is then the first handler to run, with exit()'s status.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit") and hasattr(libc, "__cxa_thread_atexit_impl"):  # glibc
        libc.__cxa_thread_atexit_impl(libc.on_exit, libc._exit, libc._exit)


def _announce(*lines: str) -> None:
    """Print the hub's addresses; if that fails, as on a full disk, only log it."""
    try:
        if _is_read(sys.stdout):
            _print(*lines)
    except _UnprintedError as error:
        _log.warning("where the hub is: %s", error)


def _say_who_may_send(hub: Hub, allowed_file: Path | None) -> None:
    """Log who may send, unless only this machine can."""
    from streamer.config import is_loopback

    count, said = hub.keys_allowed, []
    if count is not None:
        said.append(f"encrypted, {count or 'no'} key{'s' * (count != 1)} of {allowed_file} may send")
    endpoint = (hub.endpoint if count is None else hub.plain_endpoint) or ""
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if endpoint.startswith("tcp://") and not is_loopback(host):
        said.append(f"not encrypted, anybody who reaches {endpoint} may send (README, Who may send)")
    if said:
        _log.log(logging.INFO if count else logging.WARNING, "%s", "; ".join(said))


def _allow_descriptors() -> None:
    """Raise the soft limit of file descriptors above the number of connections; 1,024 is a shell's default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _summarise_hub(hub: Hub) -> None:
    seen = [(status, frame) for status in hub.cameras() if (frame := hub.latest(status.name))]
    if not seen:
        _print("Frames received: 0")
        return
    frames, elapsed_s = sum(status.frames for status, _ in seen), hub.elapsed_s
    rate = frames / elapsed_s if elapsed_s else 0.0
    _print(f"Frames received: {frames} from {_cameras(len(seen))} in {elapsed_s:.2f} s, {rate:.2f} frames/s")
    head = ("camera", "frames", "frames/s", "dropped", "lost", "last payload", "last image", "compression ratio")
    rows: list[tuple[str, ...]] = [head]
    for status, frame in seen:
        sent = len(frame.payload)
        raw = frame.width * frame.height * 3 if frame.is_jpeg else sent
        each = status.frames / elapsed_s if elapsed_s else 0.0
        counts = str(status.frames), f"{each:.2f}", str(status.dropped), str(status.lost)
        rows.append((status.name, *counts, f"{sent} bytes", f"{raw} bytes", f"{sent / raw:.3f}"))
    _print_table(rows)


def _cameras(count: int) -> str:
    return "1 camera" if count == 1 else f"{count} cameras"


# -- keys


def _keys(options: argparse.Namespace) -> int:
    from streamer.config import checked, file_path
    from streamer.keys import make_pair, read_pair

    file = checked(file_path, options.file, "FILE")
    pair = make_pair(file) if options.verb == "make" else read_pair(file)
    _print(pair.public)
    return 0


# -- demo


def _demo(options: argparse.Namespace) -> int:
    from streamer.cameras import pattern  # noqa: F401 - reports a missing extra before anything is started
    from streamer.config import HubConfig, checked, integer, load

    cameras = checked(integer(1, 64), options.cameras, "--cameras")
    shown = {flag: getattr(options, flag) for flag in ("display", "layout")}
    load(HubConfig, None, shown)
    names = [f"pi{number}" for number in range(1, cameras + 1)]
    with Signals() as signals, ExitStack() as processes:
        port = next((port for port in _DEMO_PORTS if _is_free(port)), 0)
        try:
            config = Path(processes.enter_context(tempfile.TemporaryDirectory())) / "hub.yml"
            config.write_text(json.dumps({"cameras": names}))  # which is YAML too
        except OSError as error:
            raise StreamerError(f"the demo needs a little room for temporary files: {error.strerror}") from error
        places = ("--bind", "tcp://127.0.0.1:0", "--http", f"127.0.0.1:{port}")
        display = [f"--{flag}={value}" for flag, value in shown.items() if value is not None]
        hub = processes.enter_context(_Child("hub", *places, *display, "--config", str(config)))
        endpoint, wall = hub.announced("hub: "), hub.announced("wall: ")
        if not (endpoint and wall):
            if (ended := hub.wait()) == _USAGE:
                return ended  # it has said why
            raise StreamerError("the demo's hub did not start; see above")
        senders = [
            processes.enter_context(_Child("send", "--hub", endpoint, "--name", name, "--camera", "pattern"))
            for name in names
        ]
        for child in (hub, *senders):
            processes.callback(child.terminate)  # all before one is waited for, so that they end in parallel
        _print(f"{_cameras(cameras)}, sending to {endpoint}", f"The wall: {wall}   (Ctrl-C ends it all)")
        while not signals.wait(_LOOK_S):
            status = hub.poll()
            if status == 0:  # somebody pressed q in a window
                break
            if status is not None:
                raise StreamerError(f"the demo's hub ended with status {status}; see above")
            for sender in [sender for sender in senders if sender.poll() is not None]:
                _print(f"'{sender.command}' has ended with status {sender.poll()}")
                senders.remove(sender)
    return 0


class _Child(subprocess.Popen[str]):
    """A command of this program in a child process, which never outlives this one."""

    def __init__(self, *arguments: str) -> None:
        self.command = " ".join(arguments)
        is_hub = arguments[0] == "hub"
        super().__init__(
            [sys.executable, "-m", "streamer", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if is_hub else subprocess.DEVNULL,
            stderr=None if is_hub else subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # so that Ctrl-C does not reach it directly
            preexec_fn=_die_with_parent,  # there are no threads yet
        )

    def announced(self, prefix: str) -> str | None:
        """Return what the process prints after `prefix` at the start of its next line."""
        line = self.stdout.readline() if self.stdout else ""
        return line.removeprefix(prefix).strip() if line.startswith(prefix) else None

    def __exit__(self, *_: object) -> None:
        self.terminate()
        try:
            rest = self.communicate(timeout=5)[0]
        except subprocess.TimeoutExpired:
            self.kill()
            rest = self.communicate()[0]
        if rest:
            _print(rest.rstrip())


def _die_with_parent() -> None:
    if platform.system() == "Linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# -- status


def _status(options: argparse.Namespace) -> int:
    from streamer.config import checked, file_path, number, optional
    from streamer.page import Page

    password_file = checked(optional(file_path), options.password_file, "--password-file")
    ca_file = checked(optional(file_path), options.ca_file, "--ca-file")
    wait_s = checked(optional(number(0, _WAIT_MAX_S)), options.wait, "--wait")
    page = Page(_hub_here() if options.hub is None else options.hub, password_file, ca_file)
    known, rows, late = _ask(page, options.names, wait_s)
    if options.json:
        _print(json.dumps(rows))
    else:
        _print_cameras(rows)
    if unknown := [name for name in options.names if name not in known]:
        its = ", ".join(known) or "none"
        raise StreamerError(f"the hub knows no camera {', '.join(unknown)}; its cameras are: {its}")
    if wait_s is not None and (late or not rows):
        those = [f"{row['name']} is {row['state']}" + " without a new frame" * (row["state"] == "LIVE") for row in late]
        raise StreamerError(f"not LIVE and moving within {wait_s:g} s: {', '.join(those) or 'the hub has no camera'}")
    return 0


def _ask(
    page: Page, names: Sequence[str], wait_s: float | None
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Ask a hub for its cameras, with `wait_s` again until they are LIVE and have new frames.

    Args:
        page: the hub's.
        names: of the cameras wanted; empty for all.
        wait_s: how long to wait for them, in seconds; None asks once.

    Returns:
        All rows of the hub's table by name; the rows wanted; of these, the ones not LIVE or without a new frame.

    Raises:
        StreamerError: no hub answers.
    """
    deadline = time.monotonic() + (wait_s or 0)
    before: dict[str, int] = {}
    for look in itertools.count():
        table, problem = page.cameras()
        known = {row["name"]: row for row in table or ()}
        rows = [] if table is None else [known.get(name) or _unknown(name) for name in names or known]
        late = [row for row in rows if row["state"] != "LIVE" or row["frames"] <= before.get(row["name"], math.inf)]
        # It takes a second look to see new frames, however short the wait.
        if wait_s is None or (rows and not late) or (look and time.monotonic() >= deadline):
            break
        before = {row["name"]: row["frames"] for row in rows}
        time.sleep(0.5)
    if table is None:
        raise StreamerError(problem)
    return known, rows, late


def _unknown(name: str) -> dict[str, Any]:
    """Make a row for a camera that the hub does not know."""
    from streamer.presence import Status

    return dict(vars(Status(name, _UNKNOWN)))


def _hub_here() -> str:
    """Return the address of the hub on this machine: its socket if this user may open it, else its page."""
    return f"unix:{_HUB_SOCKET}" if os.access(_HUB_SOCKET, os.W_OK) else "http://127.0.0.1:8080"


def _print_cameras(rows: Sequence[dict[str, Any]]) -> None:
    """Print the hub's table. An older hub may lack the keys read by `get`."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    table: list[tuple[str, ...]] = [tuple(_COLUMNS)]
    for row in rows:
        size = f"{row['width']}x{row['height']}" if row["width"] else "-"
        wanted, latency_ms, error = row.get("wanted_fps"), row.get("latency_ms"), row.get("latency_error_ms")
        latency = "-" if latency_ms is None or error is None else f"{latency_ms:.1f} ±{max(0.1, error):.1f}"
        version, plus, build = (row.get("release") or "-").partition("+")
        table.append(
            (
                row["name"],
                row["state"],
                f"{row['fps']:.1f}" + (f"/{wanted:g}" if wanted else ""),
                number(row["age_s"], ".2f" if (row["age_s"] or 0) < 100 else ".0f"),
                latency,
                str(row["frames"]),
                str(row["dropped"]),
                str(row["lost"]),
                number(row.get("reconnects"), ""),
                size,
                f"{row['bytes_per_s'] / 1000:.0f}",
                row["address"] or "-",
                version + plus + build[:8],  # enough to tell releases apart
            )
        )
    columns, left_out = _fitted(table, _terminal_width())
    _print_table([*zip(*columns, strict=True)])
    if left_out:
        _print(f"Left out here: {', '.join(left_out)}")
    if not rows:
        _print("No camera has come yet.")
    for row in rows:
        if row.get("rival"):
            _print(f"{row['name']}: another sender at {row['rival']} has this name too, and is refused")
        if row.get("still_s"):
            _print(f"{row['name']}: its picture has been the same for {row['still_s']:.0f} s")


def _terminal_width() -> float:
    """Return how many characters a line of the terminal holds; infinity where the output is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _TERMINAL_WIDTH  # a serial line does not know
    except (AttributeError, OSError, ValueError):  # closed, or no terminal
        return math.inf


def _fitted(table: Sequence[tuple[str, ...]], width: float) -> tuple[list[tuple[str, ...]], list[str]]:
    """Fit a table of cameras into a line's width: the least important columns go.

    Args:
        table: its rows, the columns' heads first.
        width: in characters.

    Returns:
        The columns kept; the heads of the others.
    """
    names, *others = zip(*table, strict=True)
    room = width - max(len(name) for name in names)
    kept = set()
    for column in sorted(others, key=lambda column: _COLUMNS[column[0]]):
        if (needed := 2 + max(len(cell) for cell in column)) <= room:
            room -= needed
            kept.add(column[0])
    return [names, *(each for each in others if each[0] in kept)], [each[0] for each in others if each[0] not in kept]


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows in columns, the first left-aligned and the others right-aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells))
    _print(*lines)
