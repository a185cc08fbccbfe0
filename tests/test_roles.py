"""The roles say what they take, the operator's files set only what there is, and the units are sound."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]
ROLES = ["node", "streamer", "sender", "hub"]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
# What a unit may expose at most, on systemd's scale of 0 to 10, times ten.
EXPOSURE = 30
GROUP_VARS = list(ROOT.glob("group_vars/*.yml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def defaults_of(role: str) -> dict[str, Any]:
    return dict(load(ROOT / "roles" / role / "defaults" / "main.yml"))


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = loaded
    spec.loader.exec_module(loaded)
    return loaded


fleet_plan = module(ROOT / "playbooks" / "filter_plugins" / "fleet.py").fleet_plan


def plan(groups: dict[str, list[str]], **hosts: dict[str, Any]) -> dict[str, Any]:
    defaults = {key: value for role in ROLES for key, value in defaults_of(role).items()}
    names = {name for group in groups.values() for name in group}
    hostvars = {
        name: {"ansible_host": f"192.0.2.{number}"} | hosts.get(name, {}) for number, name in enumerate(sorted(names))
    }
    return dict(fleet_plan(groups, hostvars, defaults))


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_agree(role: str) -> None:
    options = load(ROOT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    assert {name: option["default"] for name, option in options.items() if "default" in option} == defaults_of(role)
    for name, option in options.items():
        assert option["description"].endswith((".", "?", "lacks it.")), name
        assert ("default" in option) != option.get("required", False), f"{name}: either required or with a default"


@pytest.mark.parametrize("path", [*GROUP_VARS, *ROOT.glob("roles/*/defaults/main.yml")], ids=str)
def test_every_variable_is_explained_by_a_comment(path: Path) -> None:
    above = ""
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "---", " ")):
            # A comment may explain a few variables that stand together.
            assert above.startswith("#") or above.split(":")[0].startswith(("streamer_", "node_", "hub_", "sender_")), (
                line
            )
        above = line


@pytest.mark.parametrize("path", GROUP_VARS, ids=str)
def test_operators_set_only_what_some_role_takes(path: Path) -> None:
    known = {name for role in ROLES for name in defaults_of(role)}
    assert set(load(path)) <= known


def test_the_example_inventory_sees_group_vars() -> None:
    # Without the link, playbooks/ would silently run without what operators set.
    assert (ROOT / "inventory" / "group_vars").resolve() == ROOT / "group_vars"


def test_a_camera_sends_to_the_first_hub() -> None:
    hosts = plan({"cameras": ["pi1", "pi2"], "hubs": ["left", "right"]}, left={"streamer_port": 6000})["hosts"]
    assert hosts["pi1"]["sender"]["hubs"] == ["tcp://192.0.2.0:6000"]
    assert hosts["left"]["hub_config"]["cameras"] == ["pi1", "pi2"]
    assert hosts["right"]["hub_config"]["cameras"] == []


def test_a_camera_names_its_hubs() -> None:
    groups = {"cameras": ["pi1", "pi2"], "hubs": ["left", "right"]}
    hosts = plan(groups, pi1={"streamer_hub": "right"}, pi2={"streamer_hub": ["right", "left"]})["hosts"]
    assert hosts["pi1"]["sender"]["hubs"] == ["tcp://192.0.2.3:5555"]
    assert hosts["pi2"]["sender"]["hubs"] == ["tcp://192.0.2.3:5555", "tcp://192.0.2.0:5555"]
    assert hosts["right"]["hub_config"]["cameras"] == ["pi1", "pi2"]


def test_a_hub_may_be_a_camera_too() -> None:
    hosts = plan({"cameras": ["pi1"], "hubs": ["pi1"]}, pi1={"streamer_camera": "usb:0"})["hosts"]
    assert hosts["pi1"]["units"] == ["streamer-hub", "streamer-sender"]
    assert {"cv2", "aiohttp", "simplejpeg"} <= set(hosts["pi1"]["imports"])


def test_an_ipv6_address_is_bracketed_in_the_endpoint() -> None:
    hosts = plan({"cameras": ["pi1"], "hubs": ["hub"]}, hub={"streamer_address": "fd00::1"})["hosts"]
    assert hosts["pi1"]["sender"]["hubs"] == ["tcp://[fd00::1]:5555"]


def test_a_hub_that_ansible_does_not_manage_gets_a_command() -> None:
    made = plan({"cameras": ["pi1"], "hubs": ["desk"]}, desk={"hub_managed": False, "streamer_display": "windows"})
    assert made["hubs"] == {}
    assert made["hosts"]["desk"]["units"] == []
    assert made["commands"] == {
        "desk": 'streamer hub --bind "tcp://*:5555" --http "127.0.0.1:8080" --display "windows"'
    }


def test_the_raspberry_pi_archive_is_asked_only_where_it_is() -> None:
    groups = {"cameras": ["pi1"], "hubs": ["hub"]}
    debian = {"streamer_camera": "usb:0", "streamer_pi_archive": False}
    assert "python3-simplejpeg" in plan(groups)["hosts"]["pi1"]["packages"]
    assert "python3-simplejpeg" not in plan(groups, pi1=debian)["hosts"]["pi1"]["packages"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of a checkout as the wheel is built from."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "streamer").mkdir()
    (tmp_path / "streamer" / "__init__.py").write_text('"""Streams."""\n\n__version__ = "1.2.3"\n')
    return tmp_path


def build(checkout: Path, *arguments: str) -> dict[str, Any]:
    script = ROOT / "roles" / "streamer" / "files" / "build_wheel.py"
    command = [sys.executable, str(script), str(checkout), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def test_a_wheel_is_built_once_for_each_state_of_the_source(checkout: Path) -> None:
    dry = build(checkout, "--dry-run")
    assert not (checkout / "build").exists()
    first = build(checkout)
    assert first["built"]
    assert first == dry
    assert first["release"].startswith("1.2.3+")
    assert not build(checkout)["built"]
    (checkout / "README.md").write_text("Other words are no other release.")
    assert not build(checkout)["built"]
    (checkout / "streamer" / "new.py").write_text("")
    assert build(checkout)["release"] != first["release"]


def test_one_source_makes_the_same_wheel_byte_for_byte(checkout: Path) -> None:
    wheel = Path(build(checkout)["wheel"])
    content = wheel.read_bytes()
    wheel.unlink()
    os.utime(checkout / "streamer" / "__init__.py")
    assert Path(build(checkout)["wheel"]).read_bytes() == content


UNITS = {
    "sender": ("sender", {"camera": "picamera2"}),
    "sender of a video": ("sender", {"camera": "file:/srv/a.mp4"}),
    "hub": ("hub", {"display": "none"}),
    "hub with windows": ("hub", {"display": "windows"}),
}


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each unit as Ansible writes it, but for the program, which is not installed here."""
    directory = tmp_path_factory.mktemp("units")
    tasks = []
    for number, (role, config) in enumerate(UNITS.values()):
        variables = load(ROOT / "roles" / role / "vars" / "main.yml") | defaults_of(role)
        variables |= {f"{role}_config": {"name": "pi1", **config}, "hub_display_user": "pi"}
        variables["_hub_screen"] = {"stdout": "pi:x:1000:1000::/home/pi:/bin/bash"}
        destination = directory / str(number) / f"streamer-{role}.service"
        destination.parent.mkdir()
        source = ROOT / "roles" / role / "templates" / destination.with_suffix(".service.j2").name
        template = {"src": str(source), "dest": str(destination)}
        tasks.append({"name": "Write", "ansible.builtin.template": template, "vars": variables})
    play = {"hosts": "localhost", "gather_facts": False, "tasks": tasks, "vars": {"node_found": {"systemd": "252"}}}
    (directory / "play.yml").write_text(yaml.safe_dump([play]))
    subprocess.run([PLAYBOOK, directory / "play.yml"], check=True, cwd=directory, capture_output=True)
    paths = {name: next((directory / str(number)).iterdir()) for number, name in enumerate(UNITS)}
    for path in paths.values():
        path.write_text(path.read_text().replace("/opt/streamer/current/bin/streamer", "/bin/true"))
    return paths


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_systemd_knows_every_line_of_the_units(name: str, units: dict[str, Path]) -> None:
    checked = analyze("verify", "--man=no", units[name])
    assert units[name].name not in checked.stderr, checked.stderr


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_units_expose_little(name: str, units: dict[str, Path]) -> None:
    checked = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", units[name])
    assert checked.returncode == 0, checked.stdout[-200:]


@pytest.mark.parametrize("script", list(ROOT.glob("roles/*/files/*.sh")), ids=str)
def test_shell_scripts_parse(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)
