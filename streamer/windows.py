"""OpenCV windows: one per camera, as in imagezmq's eight-Pi picture, or one with all; the caller's thread draws them.

On macOS only the main thread may draw, so call `run` there. Pictures come to it decoded, for the size that they are
shown at, so that none delays another.

Of the CPU time for a frame of 640x480, half goes into the JPEG and a fifth into Qt, which converts, scales and
paints. Measured and rejected: scaling each picture to its window before Qt does (cv2.resize takes what Qt saves, and
libjpeg is fast only at a half and below); checking less often whether a window is still open (1 us).
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING

from streamer.errors import MissingExtraError, TransportError
from streamer.grid import Grid
from streamer.pictures import Pictures
from streamer.presence import State, patience_s
from streamer.screen import show_windows
from streamer.tiles import greyed, marked, oddity, picture_for, silence, unshown

try:
    import cv2
except ImportError as error:
    raise MissingExtraError("a display of windows", "opencv", "python3-opencv", error) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamer.codec import Image
    from streamer.config import Layout
    from streamer.frame import Frame
    from streamer.hub import Hub
    from streamer.presence import Status

_EIGHT = 8  # windows are laid out for at least this many cameras
_TITLE_BAR = 40  # pixels above each row for the title bars
_LOOK_S = 0.25
_CLOSED_S = 1.0
_FRAMED_S = 2.0
_SHOWN_AFTER_S = (1.0, 10.0)  # after the last window was opened: as soon as it should be there, and on a busy machine
_OPEN_EVERY_S = 0.05  # if several windows open at once, Qt now and then never paints one
_KEY_QUIT, _KEY_ESCAPE, _KEY_FULL_SCREEN = ord("q"), 27, ord("f")
_TITLE = "streamer"


class _Display:
    """What both displays have in common: they take the newest frames, check the table now and then, and handle keys."""

    _draw_every_s = 1 / 60  # no screen shows more

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._show_at: list[float] = []

    def run(self, ended: Callable[[], bool]) -> None:
        """Show the cameras until `ended` returns true, or somebody presses q in a window.

        Raises:
            TransportError: there is no screen.
        """
        # OpenCV's own threads spin while they wait for work: for pictures of this size that costs more than it gains.
        cv2.setNumThreads(1)
        pictures = Pictures(self._hub, decode=self._decode)
        looked = 0.0
        try:
            while not ended():
                taken = pictures.take(0.02)
                began = time.monotonic()
                while taken is not None:
                    self._show(*taken)
                    taken = pictures.take()
                if began - looked >= _LOOK_S:
                    looked = began
                    self._look_after(self._hub.cameras())
                    self._show_lost(began)
                self._draw()
                # Puts on the screen what was shown, and handles keys and the mouse; it needs a window to exist.
                if self._has_window():
                    rest_s = began + self._draw_every_s - time.monotonic()
                    key = cv2.waitKey(max(1, int(1000 * rest_s))) & 0xFF
                    if key == _KEY_QUIT:
                        break
                    self._press(key)
                    if not self._notice_closed():
                        break
        except cv2.error as error:
            raise TransportError(f"cannot show windows: {error.err}; is there a screen?") from error
        finally:
            pictures.close()
            cv2.destroyAllWindows()

    def _note_opened(self) -> None:
        """Note that a window was opened just now."""
        self._show_at = [time.monotonic() + after_s for after_s in _SHOWN_AFTER_S]

    def _show_lost(self, now: float) -> None:
        """Some time after windows were opened, have those painted that Qt has lost."""
        if self._show_at and now >= self._show_at[0]:
            del self._show_at[0]
            if sys.platform == "linux":
                with contextlib.suppress(RuntimeError):  # the system allows no more threads; Qt seldom loses one
                    threading.Thread(target=show_windows, name="showing", daemon=True).start()

    def _decode(self, frame: Frame) -> Image | None:
        """Decode a frame at the size it is shown at; None if it is not shown. Called by any thread."""
        raise NotImplementedError

    def _show(self, frame: Frame, picture: Image | None) -> None:
        raise NotImplementedError

    def _look_after(self, statuses: list[Status]) -> None:
        raise NotImplementedError

    def _has_window(self) -> bool:
        raise NotImplementedError

    def _notice_closed(self) -> bool:
        """Handle windows that the user has closed; return False if the display ends with that."""
        raise NotImplementedError

    def _draw(self) -> None:
        """Bring the screen up to date."""

    def _press(self, key: int) -> None:
        """Handle a key, by its ASCII code."""


class Windows(_Display):
    """One window per camera, named after it.

    Args:
        hub: where the cameras are.
        cameras: names of the cameras that get the first places, in this order.
        rows: how many rows of windows.
        width: initial width of each window, in pixels, less if the screen is too small for them all; its height is at
            most three quarters of that.
        screen: (width, height) of the screen, in pixels.
    """

    def __init__(
        self, hub: Hub, cameras: Sequence[str], *, rows: int = 2, width: int = 480, screen: tuple[int, int]
    ) -> None:
        super().__init__(hub)
        self._rows = rows
        self._places = list(cameras)
        self._most_width = width
        self._screen = screen
        self._lay_out()
        self._boxes: dict[str, tuple[int, int]] = {}  # (width, height) in pixels of each window, if known
        self._coming: dict[str, Image] = {}  # first pictures of windows to open
        self._last_opened = 0.0
        self._pictures: dict[str, Image] = {}  # newest pictures of open windows
        self._opened: dict[str, float] = {}  # when new windows, which may not be in their places yet, were opened
        self._odd: dict[str, str] = {}  # words on the picture of each LIVE camera
        self._closing = _Closing()
        # Windows that the user has closed, until the camera comes back: when its last frame came.
        self._hidden: dict[str, float] = {}

    def _has_window(self) -> bool:
        return bool(self._pictures)

    def _notice_closed(self) -> bool:
        for name in [name for name in self._pictures if self._closing.look(name)]:
            del self._pictures[name]
            self._hidden[name] = time.monotonic()
        return True

    def _decode(self, frame: Frame) -> Image | None:
        if frame.camera in self._hidden:
            return None
        return picture_for(frame, *self._boxes.get(frame.camera, (self._width, self._cell_height)))

    def _show(self, frame: Frame, picture: Image | None) -> None:
        name = frame.camera
        if name in self._hidden:
            before, self._hidden[name] = self._hidden[name], time.monotonic()
            _, gone_after_s = patience_s(frame, self._hub.stale_after_s, self._hub.gone_after_s)
            if self._hidden[name] - before < gone_after_s:
                return
            del self._hidden[name]
        if name in self._pictures:
            words = unshown(frame) if picture is None else self._odd.get(name, "")
            if picture is not None:
                self._pictures[name] = picture
            self._put(name, marked(self._pictures[name], words))
        elif picture is not None:
            self._coming[name] = picture

    def _draw(self) -> None:
        now = time.monotonic()
        if self._coming and now - self._last_opened >= _OPEN_EVERY_S:
            self._last_opened = now
            name = next(iter(self._coming))
            self._open(name, self._coming.pop(name))

    def _put(self, name: str, image: Image) -> None:
        if not self._closing.is_away(name):  # else imshow would open it again
            cv2.imshow(name, image)

    def _open(self, name: str, image: Image) -> None:
        if name not in self._places:
            self._places.append(name)
            if len(self._places) > self._columns * self._rows:
                self._lay_out()
                self._opened = dict.fromkeys(self._pictures, time.monotonic())  # all others move
        self._pictures[name] = image
        cv2.namedWindow(name, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        cv2.imshow(name, image)
        self._place(name)
        self._opened[name] = time.monotonic()
        self._note_opened()

    def _lay_out(self) -> None:
        """Set how many columns of windows there are, and their size."""
        self._columns = -(-max(_EIGHT, len(self._places)) // self._rows)
        across, down = self._screen[0] // self._columns, self._screen[1] // self._rows - _TITLE_BAR
        self._width = max(1, min(self._most_width, across, down * 4 // 3))
        self._cell_height = self._width * 3 // 4

    def _place(self, name: str) -> None:
        """Fit a window into its cell of the grid, row by row."""
        height, width = self._pictures[name].shape[:2]
        scale = min(self._width / width, self._cell_height / height)
        cv2.resizeWindow(name, max(1, int(width * scale)), max(1, int(height * scale)))
        row, column = divmod(self._places.index(name), self._columns)
        cv2.moveWindow(name, column * self._width, row * (self._cell_height + _TITLE_BAR) + _TITLE_BAR)

    def _look_after(self, statuses: list[Status]) -> None:
        """Keep new windows in their places, grey those of STALE cameras, close those of GONE ones."""
        # A window manager puts a new window where it likes, and ignores moves and sizes until it has framed it.
        now = time.monotonic()
        self._opened = {name: opened for name, opened in self._opened.items() if now - opened < _FRAMED_S}
        for name in self._opened.keys() & self._pictures.keys():
            if not self._closing.is_away(name):  # else it would be opened again
                self._place(name)
        for name in self._pictures:
            if self._closing.was_seen(name) and not self._closing.is_away(name):
                self._boxes[name] = _size(name) or self._boxes.get(name, (self._width, self._cell_height))
        self._odd = {status.name: oddity(status) for status in statuses}
        for status in statuses:
            name = status.name
            if status.state == State.GONE:
                self._closing.forget(name)
                self._coming.pop(name, None)
                if self._pictures.pop(name, None) is not None:
                    cv2.destroyWindow(name)
            elif status.state == State.STALE and name in self._pictures:
                self._put(name, greyed(self._pictures[name], silence(status)))


class GridWindow(_Display):
    """All cameras in one window; closing it ends the display.

    A click on a camera enlarges it, a second click or Escape shows all again; f toggles full screen.

    Args:
        hub: where the cameras are.
        cameras: names of the cameras that get the first places, in this order.
        layout: how many rows and columns.
        width: initial width of each tile, in pixels; less if the window would be larger than the screen.
        screen: (width, height) of the screen, in pixels.
        full_screen: start in full screen.
    """

    _draw_every_s = 1 / 30  # the whole canvas is painted each time, whichever tile is new

    def __init__(
        self,
        hub: Hub,
        cameras: Sequence[str],
        *,
        layout: Layout,
        width: int = 480,
        screen: tuple[int, int],
        full_screen: bool = False,
    ) -> None:
        super().__init__(hub)
        self._full_screen = full_screen
        whole = layout.columns * width, layout.rows * width * 33 // 40  # three quarters, and a tenth of it for captions
        scale = min(1.0, screen[0] / whole[0], (screen[1] - _TITLE_BAR) / whole[1])
        self._size = int(whole[0] * scale), int(whole[1] * scale)
        self._grid = Grid(layout, cameras)
        self._closing = _Closing()
        self._is_open = False

    def _has_window(self) -> bool:
        return self._is_open

    def _notice_closed(self) -> bool:
        return not self._closing.look(_TITLE)

    def _decode(self, frame: Frame) -> Image | None:
        return self._grid.decode(frame)

    def _show(self, frame: Frame, picture: Image | None) -> None:
        self._grid.put(frame, picture)

    def _look_after(self, statuses: list[Status]) -> None:
        self._grid.update(statuses)

    def _draw(self) -> None:
        if not self._is_open:
            cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_FREERATIO | cv2.WINDOW_GUI_NORMAL)
            cv2.resizeWindow(_TITLE, *self._size)
            if self._full_screen:
                self._fill()
            cv2.setMouseCallback(_TITLE, self._click)
            self._grid.resize(*self._size)
            self._is_open = True
            self._note_opened()
        elif self._closing.is_away(_TITLE):
            return
        elif self._closing.was_seen(_TITLE):
            size = _size(_TITLE)
            if size:
                self._grid.resize(*size)
        if self._grid.draw():
            cv2.imshow(_TITLE, self._grid.canvas)

    def _press(self, key: int) -> None:
        if key == _KEY_ESCAPE:
            self._grid.restore()
        elif key == _KEY_FULL_SCREEN:
            self._full_screen = not self._full_screen
            self._fill()

    def _fill(self) -> None:
        """Enter or leave full screen, as `_full_screen` says."""
        mode = cv2.WINDOW_FULLSCREEN if self._full_screen else cv2.WINDOW_NORMAL
        cv2.setWindowProperty(_TITLE, cv2.WND_PROP_FULLSCREEN, mode)

    def _click(self, event: int, x: int, y: int, _flags: int, _param: object) -> None:
        if event == cv2.EVENT_LBUTTONUP:
            self._grid.press(x, y)


class _Closing:
    """Tells windows that the user has closed from those only invisible while the desktop frames them."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._away: dict[str, float] = {}  # windows seen before and invisible now, since when

    def look(self, name: str) -> bool:
        """Check an open window; return whether the user has closed it."""
        now = time.monotonic()
        if _is_visible(name):
            self._seen.add(name)
            self._away.pop(name, None)
        # On macOS OpenCV's windows have no button to close them, and one that is minimised is not visible.
        elif name in self._seen and now - self._away.setdefault(name, now) > _CLOSED_S and sys.platform != "darwin":
            self.forget(name)
            return True
        return False

    def was_seen(self, name: str) -> bool:
        """Whether a window has been visible."""
        return name in self._seen

    def is_away(self, name: str) -> bool:
        """Whether a window that was visible is not now."""
        return name in self._away

    def forget(self, name: str) -> None:
        """Forget a window."""
        self._seen.discard(name)
        self._away.pop(name, None)


def _is_visible(name: str) -> bool:
    """Whether a window is visible."""
    try:
        return bool(cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) >= 1)
    except cv2.error:  # Qt, once its last window was closed
        return False


def _size(name: str) -> tuple[int, int] | None:
    """Return a window's (width, height) in pixels; None while it has none."""
    _, _, width, height = cv2.getWindowImageRect(name)
    return (width, height) if width > 0 and height > 0 else None
