"""What the README promises: its examples run as they stand, its commands and their flags are those that there are."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from streamer import cli
from tests.conftest import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SENDER, *HUBS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@contextmanager
def running(example: str, port: int) -> Iterator[list[str]]:
    """Run an example at a port of this machine; yields the lines that it prints."""
    example = example.replace("tcp://hub:5555", f"tcp://127.0.0.1:{port}").replace("tcp://*:5555", f"tcp://*:{port}")
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", example], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: list[str] = []
    assert process.stdout
    reader = threading.Thread(target=lines.extend, args=[process.stdout])
    reader.start()
    try:
        yield lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


@pytest.mark.parametrize(("example", "line"), [*zip(HUBS, (r"door \d+ 640 480", r"door \(480, 640, 3\)"), strict=True)])
def test_example_runs(example: str, line: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running(example, port) as printed, running(SENDER, port) as sent:
        until(lambda: len(printed) >= 2, 20)
    assert all(re.fullmatch(f"{line}\n", each) for each in printed)
    assert not sent


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


def test_every_flag_of_every_command_is_there() -> None:
    commands = README.partition("## The commands\n")[2].partition("\n`streamer send")[0]
    written = re.findall(r"^    (streamer(?: \w+)?)(.*(?:\n {19}.*)*)", commands, re.MULTILINE)
    flags = {command: set(re.findall(r"--[a-z-]+", rest)) for command, rest in written}
    assert flags == {
        parser.prog: found
        for parser in parsers(cli._parser())
        if (found := {flag for flag in parser._option_string_actions if flag.startswith("--")} - {"--help"})
    } | {"streamer keys": set()}


def test_what_make_is_asked_for_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    asked = set(re.findall(r"(?:^    |`)make ([a-z][a-z0-9-]*)", README, re.MULTILINE))
    assert {"demo", "demo-windows", "test"} < asked <= set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_demo_of_windows_has_what_windows_need() -> None:
    # As from a shell, also where make runs the tests.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--dry-run", "--always-make", "demo-windows"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert re.search(r"environment.sh .*opencv", done.stdout)
    assert done.stdout.endswith("streamer demo --display windows\n")


def test_a_package_that_another_one_provides_is_not_called_missing(tmp_path: Path) -> None:
    listed = (
        "installed, libglib2.0-0t64, libglib2.0-0 (= 2.84),\\nconfig-files, libgl1, ,\\ninstalled, libsm6-dev, libx,\\n"
    )
    (tmp_path / "venv/bin").mkdir(parents=True)
    for name, script in {"dpkg-query": f"printf '{listed}'", "id": "echo 1000", "venv/bin/pip": ":"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    packages = ["libglib2.0-0", "libgl1", "libsm6", "libx"]
    command = ["tests/environment.sh", sys.executable, str(tmp_path / "venv"), "hub", *packages]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Not installed, so what needs them is skipped: libgl1 libsm6\n")


@pytest.mark.parametrize("module", ["tests.lab.power", "tests.lab.reboots", "tests.bench.fleet"])
def test_what_needs_the_lab_begins_as_the_makefile_says_it(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"$(BIN)/python -m {module}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [module])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(": error: the lab needs root on Debian or Ubuntu\n")
