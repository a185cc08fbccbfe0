"""The rules of the house: who may import whom, who may print, what is public."""

from __future__ import annotations

import ast
import importlib
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

import pytest
import zmq
from flit_core import buildapi  # type: ignore[import-untyped]

import streamer
from streamer.errors import StreamerError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "streamer"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# A file imports only from floors below its own; the folders also within themselves.
FLOORS = [
    {"__init__", "errors", "mailbox", "refusals", "window"},
    {"clock", "codec", "presence"},
    {"frame"},
    {"wire", "pictures"},
    {"keys"},
    {"config", "transport", "screen", "systemd", "cameras", "tiles"},
    {"sender", "hub", "imagezmq", "grid", "page"},
    {"windows", "wall"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FOLDERS = {"cameras", "transport", "wall"}

# The only files that import a library at run time.
LIBRARIES = {
    "PIL": {"cameras.pattern", "codec"},
    "aiohttp": {"wall", "wall.access", "wall.door"},
    "av": {"cameras.video"},
    "cv2": {"codec", "cameras.opencv", "tiles", "windows"},
    "numpy": {"cameras.video", "codec", "frame", "grid", "imagezmq", "tiles"},
    "picamera2": {"cameras.picamera2"},
    "prometheus_client": {"wall.metrics"},
    "simplejpeg": {"codec"},
    "yaml": {"config"},
    "zmq": {
        "keys",
        "transport.door",
        "transport.poller",
        "transport.receiving",
        "transport.sending",
        "transport.sockets",
    },
}
ONLY_CLI = {"print", "input", "exit", "quit", "SystemExit", "sys.exit", "sys.argv", "sys.stdout", "sys.stderr"}
ONLY_CLI |= {"os.environ", "os.getenv", "os.putenv", "os._exit", "signal.signal"}


class AtRunTime(ast.NodeVisitor):
    """Collects what a file imports and names, apart from what stands under `if TYPE_CHECKING`."""

    def __init__(self, source: str) -> None:
        self.imported: set[str] = set()
        self.named: set[str] = set()
        self.visit(ast.parse(source))

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            self.generic_visit(node)
        for statement in node.orelse:
            self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        self.imported |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert not node.level, "imports are absolute"
        self.named |= {f"{node.module}.{alias.name}" for alias in node.names}
        if node.module in {"streamer", "streamer.cameras", "streamer.transport", "streamer.wall"}:
            self.imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        else:
            self.imported.add(str(node.module))

    def visit_Name(self, node: ast.Name) -> None:
        self.named.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.named.add(ast.unparse(node))
        self.generic_visit(node)


def module_name(file: Path) -> str:
    """Name a file as in the tables: `wire`, `cameras`, `cameras.opencv`."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}
SOURCES = {name: AtRunTime(file.read_text(encoding="utf-8")) for name, file in FILES.items()}


def imports_between(source: AtRunTime) -> Iterator[str]:
    """Name the modules of this package that a file imports."""
    for imported in source.imported:
        package, _, module = imported.partition(".")
        if package == "streamer":
            while module and module not in FILES:  # a name in a module
                module = module.rpartition(".")[0]
            yield module or "__init__"


def floor_breaches(name: str, source: AtRunTime) -> list[str]:
    top = name.partition(".")[0]
    tops = ((imported, imported.partition(".")[0]) for imported in imports_between(source))
    return [
        f"{name} imports {imported}"
        for imported, other in tops
        if FLOOR_OF[other] >= FLOOR_OF[top] and not (other == top and top in FOLDERS)
    ]


# -- the rules work


@pytest.mark.parametrize(
    ("name", "source", "breaches"),
    [
        ("wire", "from streamer import hub", ["wire imports hub"]),
        ("wire", "import streamer.hub", ["wire imports hub"]),
        ("wire", "from streamer.hub import Hub", ["wire imports hub"]),
        ("wire", "def late():\n    from streamer.hub import Hub", ["wire imports hub"]),
        ("wire", "try:\n    from streamer import sender\nexcept ImportError: pass", ["wire imports sender"]),
        ("wire", "from streamer import wire", ["wire imports wire"]),
        ("hub", "from streamer import sender", ["hub imports sender"]),
        ("cameras.opencv", "from streamer.wall import Wall", ["cameras.opencv imports wall"]),
        ("wire", "if TYPE_CHECKING:\n    from streamer.hub import Hub", []),
        ("wire", "if TYPE_CHECKING:\n    pass\nelse:\n    from streamer.hub import Hub", ["wire imports hub"]),
        ("cameras.opencv", "from streamer.cameras import Camera, pattern", []),
        ("hub", "from streamer import wire\nimport streamer", []),
    ],
)
def test_breaches_are_found(name: str, source: str, breaches: list[str]) -> None:
    assert floor_breaches(name, AtRunTime(source)) == breaches


# -- the rules


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_its_floor(name: str) -> None:
    assert name.partition(".")[0] in FLOOR_OF


@pytest.mark.parametrize("name", FILES)
def test_imports_by_floor(name: str) -> None:
    assert floor_breaches(name, SOURCES[name]) == []


def test_the_package_itself_imports_nothing() -> None:
    assert list(imports_between(SOURCES["__init__"])) == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_stay_in_their_files(library: str) -> None:
    importing = {
        name
        for name, source in SOURCES.items()
        if any(imported.partition(".")[0] == library for imported in source.imported)
    }
    assert importing == LIBRARIES[library] & set(FILES)


@pytest.mark.parametrize("name", [name for name in FILES if name != "cli"])
def test_only_cli_prints_ends_and_reads_the_environment(name: str) -> None:
    assert SOURCES[name].named & ONLY_CLI == set()


@pytest.mark.parametrize("name", FILES)
def test_every_module_says_what_it_is(name: str) -> None:
    docstring = ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8")))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))


def extras_named() -> dict[str, set[str]]:
    """Find the extras that the files' errors name."""
    found: dict[str, set[str]] = {}
    for name, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "MissingExtraError":
                found.setdefault(name, set()).add(ast.literal_eval(node.args[1]))
    return found


def test_extras_that_errors_name_exist() -> None:
    named = extras_named()
    assert set().union(*named.values()) <= set(PROJECT["optional-dependencies"])
    optional = {"PIL", "aiohttp", "av", "cv2", "picamera2", "prometheus_client", "simplejpeg"}
    importing = set().union(*(LIBRARIES[library] for library in optional))
    assert importing - {"wall.access", "wall.door"} == set(named), "before these, `wall` itself is imported"


def test_errors_have_one_root() -> None:
    errors = importlib.import_module("streamer.errors")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert {kind.__name__ for kind in kinds} == {name for name in streamer.__all__ if name.endswith("Error")}
    assert all(issubclass(kind, StreamerError) for kind in kinds)


# -- what is public, and what is shipped


def test_public_names() -> None:
    assert streamer.__all__ == [
        "CameraError",
        "CodecError",
        "ConfigError",
        "Frame",
        "Hub",
        "ImageHub",
        "ImageSender",
        "MissingExtraError",
        "Pictures",
        "Sender",
        "StreamerError",
        "TransportError",
        "WireError",
    ]


@pytest.mark.parametrize("name", streamer.__all__)
def test_public_name_is_there(name: str) -> None:
    assert getattr(streamer, name).__name__ == name


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'streamer' has no attribute 'Nothing'"):
        streamer.Nothing  # type: ignore[attr-defined]  # noqa: B018 - asking is the test


def test_public_names_are_offered_before_they_are_used() -> None:
    program = "import streamer; print(set(streamer.__all__) <= set(dir(streamer)), 'Sender' in vars(streamer))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


class OwnHub(streamer.Hub):
    """A program's."""


class OwnSender(streamer.Sender):
    """A program's."""


def test_types_are_those_that_programs_need() -> None:
    """Checked by mypy."""
    assert_type(streamer.zmq.RCVTIMEO, zmq.SocketOption)
    with OwnHub("tcp://127.0.0.1:*") as hub, OwnSender("tcp://127.0.0.1:1", "pi1") as sender:
        assert_type(hub, OwnHub)
        assert_type(sender, OwnSender)


def test_an_error_of_a_worker_process_reaches_its_pool() -> None:
    error = streamer.MissingExtraError("decoding", "opencv", "python3-opencv", by_pip=False)
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied)) == (streamer.MissingExtraError, str(error))


def test_version_of_the_wheel_is_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    assert re.fullmatch(r"\d+\.\d+\.\d+", streamer.__version__)
    monkeypatch.chdir(ROOT)
    folder = buildapi.prepare_metadata_for_build_wheel(str(tmp_path))
    metadata = (tmp_path / folder / "METADATA").read_text(encoding="utf-8").splitlines()
    assert f"Version: {streamer.__version__}" in metadata
    assert "Name: streamer" in metadata


def test_commands_of_the_wheel_exist() -> None:
    for target in PROJECT["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
