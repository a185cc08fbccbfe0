"""One OpenCV window a camera, as in imagezmq's eight-Pi picture; every HighGUI call is made by the caller's thread.

macOS lets only the main thread draw, so `Windows.run` belongs there. Decoding is done here too, never on the hub's
receiving thread, and only of the newest frame.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from streamer.errors import CodecError, MissingExtraError, TransportError
from streamer.presence import State

try:
    import cv2
except ImportError as error:
    raise MissingExtraError("a display of windows", "opencv", "python3-opencv") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamer.codec import Image
    from streamer.frame import Frame
    from streamer.hub import Hub
    from streamer.presence import Status

_EIGHT = 8  # windows are laid out for at least so many cameras
_TITLE_BAR = 40  # pixels left between the rows for the frame that the desktop draws
_LOOK_S = 0.25
_GREYED_WIDTH = 1280
_KEY_QUIT = ord("q")
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_log = logging.getLogger(__name__)


class Windows:
    """The display.

    Args:
        hub: whose cameras are shown.
        cameras: names that get the first places, in this order.
        rows: of windows.
        width: of each window at first, in pixels, three quarters as high at most; it can be resized by hand.
    """

    def __init__(self, hub: Hub, cameras: Sequence[str] = (), *, rows: int = 2, width: int = 480) -> None:
        self._hub = hub
        self._rows = rows
        self._width = width
        self._cell_height = width * 3 // 4
        self._places = list(cameras)
        self._pictures: dict[str, Image] = {}  # of each open window
        self._opened: dict[str, float] = {}  # when, of each window that is not in its place for sure
        self._visible: set[str] = set()  # windows that were on the screen, so that closing one is noticed
        self._complaints: dict[str, str] = {}  # the last about each camera's pictures
        self._hidden: set[str] = set()  # closed by hand, until the camera comes back

    def run(self, ended: Callable[[], bool]) -> None:
        """Show the cameras until `ended` says so, or somebody presses q in a window.

        Raises:
            TransportError: there is no screen to show them on.
        """
        mailbox = self._hub.open_mailbox()
        looked = 0.0
        try:
            while not ended():
                frame = mailbox.take(0.02)
                while frame is not None:
                    self._show(frame)
                    frame = mailbox.take()
                now = time.monotonic()
                if now - looked >= _LOOK_S:
                    looked = now
                    self._look_after(self._hub.cameras())
                # Draws what was shown and handles the mouse; it needs a window to exist.
                if self._pictures and cv2.waitKey(1) & 0xFF == _KEY_QUIT:
                    break
        except cv2.error as error:
            raise TransportError(f"cannot show windows: {error.err}; is there a screen?") from error
        finally:
            self._hub.close_mailbox(mailbox)
            cv2.destroyAllWindows()

    def _show(self, frame: Frame) -> None:
        if frame.camera in self._hidden:
            return
        try:
            image = _viewable(frame.image)
        except CodecError as error:
            if str(error) != self._complaints.get(frame.camera):  # once, not for each picture
                self._complaints[frame.camera] = str(error)
                _log.warning("%s: %s", frame.camera, error)
            return
        is_new = frame.camera not in self._pictures
        self._pictures[frame.camera] = image
        if is_new:
            self._open(frame.camera)
        else:
            cv2.imshow(frame.camera, image)

    def _open(self, name: str) -> None:
        if name not in self._places:
            self._places.append(name)
        cv2.namedWindow(name, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        cv2.imshow(name, self._pictures[name])
        height, width = self._pictures[name].shape[:2]
        scale = min(self._width / width, self._cell_height / height)
        cv2.resizeWindow(name, max(1, int(width * scale)), max(1, int(height * scale)))
        self._place(name)
        self._opened[name] = time.monotonic()

    def _place(self, name: str) -> None:
        """Move a window to its cell of the grid, row by row."""
        columns = -(-max(_EIGHT, len(self._places)) // self._rows)
        row, column = divmod(self._places.index(name), columns)
        cv2.moveWindow(name, column * self._width, row * (self._cell_height + _TITLE_BAR))

    def _look_after(self, statuses: list[Status]) -> None:
        """Grey the stale, close the gone, and notice which window was closed by hand."""
        # A window manager puts a new window where it likes, and heeds a move only once it has framed it.
        for name in [name for name, opened in self._opened.items() if time.monotonic() - opened > _LOOK_S]:
            del self._opened[name]
            if name in self._pictures:
                self._place(name)
        for status in statuses:
            name = status.name
            if status.state == State.GONE.value:
                self._hidden.discard(name)
                self._visible.discard(name)
                if self._pictures.pop(name, None) is not None:
                    cv2.destroyWindow(name)
            elif name in self._pictures:
                if cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) >= 1:
                    self._visible.add(name)
                elif name in self._visible:  # else it has not come yet
                    self._visible.discard(name)
                    self._hidden.add(name)
                    del self._pictures[name]
                    continue
                if status.state == State.STALE.value and status.age_s is not None:
                    cv2.imshow(name, greyed(self._pictures[name], status.age_s))


def _viewable(image: Image) -> Image:
    """Return the picture if OpenCV can show it; a raw array may be anything."""
    if str(image.dtype) != "uint8" or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise CodecError(f"an array of {image.dtype} with shape {image.shape} is no picture that a window can show")
    return image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image


def greyed(image: Image, age_s: float) -> Image:
    """Return the picture as that of a camera that has been silent for `age_s` seconds: grey, dark, and saying so.

    Args:
        image: uint8 of shape (height, width, 3), BGR, or (height, width).
        age_s: in seconds.

    Returns:
        uint8 of shape (height, width, 3), BGR; never wider than `_GREYED_WIDTH`.
    """
    if image.shape[1] > _GREYED_WIDTH:  # letters that grow with the picture would take seconds to draw
        height = max(1, image.shape[0] * _GREYED_WIDTH // image.shape[1])
        image = cv2.resize(image, (_GREYED_WIDTH, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    dark = cv2.cvtColor(cv2.convertScaleAbs(grey, alpha=0.5), cv2.COLOR_GRAY2BGR)
    text = f"no picture for {age_s:.0f} s"
    height, width = dark.shape[:2]
    scale = max(0.4, width / 640)
    (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 2)
    at = (width - text_width) // 2, (height + text_height) // 2
    for colour, thickness in ((_BLACK, 6), (_WHITE, 2)):
        cv2.putText(dark, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
    return dark  # type: ignore[return-value]
