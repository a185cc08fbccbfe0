"""Build the package's wheel, once for each state of its source, and print where it is.

    build_wheel.py ROOT [--dry-run]

ROOT is the checkout. Prints JSON: `release` (version+hash), `wheel` (its path), `built` (whether this run made it, or
with --dry-run would). Runs on the control machine with Ansible's own Python; needs no network where that has flit_core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess  # nosec B404 # builds run apart
import sys
import tempfile
from pathlib import Path

# A wheel's bytes depend on this date and on nothing else that changes from one build to the next.
EPOCH = "1577836800"


def release_of(root: Path) -> tuple[str, str]:
    """The version in the source, and that version with a hash over everything that gets into the wheel's code."""
    package = root / "streamer"
    found = re.search(r'^__version__ = "([0-9A-Za-z.]+)"$', (package / "__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f'{package / "__init__.py"}: has no line __version__ = "…"')
    # Not what an editor or a desktop leaves there, by which one source were another release on each control machine.
    litter = re.compile(r"\..*|.*~|.*\.pyc")
    sources = [path for path in package.rglob("*") if path.is_file() and not litter.fullmatch(path.name)]
    digest = hashlib.sha256()
    for path in sorted([*sources, root / "pyproject.toml"]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return found[1], f"{found[1]}+{digest.hexdigest()[:12]}"


def build(root: Path, directory: Path) -> Path:
    """Build a wheel into an empty directory."""
    os.environ["SOURCE_DATE_EPOCH"] = EPOCH
    script = "import flit_core.buildapi as b, sys; b.build_wheel(sys.argv[1])"
    by_flit = _run("-c", script, str(directory), cwd=root)
    if by_flit.returncode != 0:
        by_pip = _run("-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={directory}", ".", cwd=root)
        if by_pip.returncode != 0:
            raise SystemExit(
                f"cannot build the wheel. {sys.executable} with flit_core: {_last_line(by_flit.stderr)}; "
                f"with pip: {_last_line(by_pip.stderr)}"
            )
    return next(directory.glob("*.whl"))


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)  # nosec B603 # no shell


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no word"])[-1]


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description="Build the package's wheel, once for each state of its source.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    root: Path = arguments.root.resolve()
    version, release = release_of(root)
    wheel = root / "build" / "releases" / release / f"streamer-{version}-py3-none-any.whl"
    built = not wheel.exists()
    if built and not arguments.dry_run:
        try:
            wheel.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch:
                build(root, Path(scratch)).replace(wheel)
        except OSError as error:
            raise SystemExit(f"cannot build the wheel: {error}") from error
    sys.stdout.write(json.dumps({"release": release, "wheel": str(wheel), "built": built}) + "\n")


if __name__ == "__main__":
    main()
