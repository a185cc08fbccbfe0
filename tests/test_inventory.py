"""A wrong inventory is refused by name, in one line, before any host is contacted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

from tests.test_roles import ROLES, defaults_of, fleet

ROOT = Path(__file__).parents[1]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"

# Addresses for documentation, which nothing answers: a play that contacted a host would say so.
GOOD = """
cameras:
  hosts:
    pi1: {ansible_host: 192.0.2.1}
    pi2: {ansible_host: 192.0.2.2}
    pi3: {ansible_host: 192.0.2.3}
hubs:
  hosts:
    hub: {ansible_host: 192.0.2.9}
"""


class Case(NamedTuple):
    """One edit of the good inventory, and what must be said about it."""

    old: str
    new: str
    said: str


PI2 = "pi2: {ansible_host: 192.0.2.2}"
HUB = "hub: {ansible_host: 192.0.2.9}"


def pi2(setting: str) -> str:
    return f"pi2: {{ansible_host: 192.0.2.2, {setting}}}"


def hub(setting: str) -> str:
    return f"hub: {{ansible_host: 192.0.2.9, {setting}}}"


CASES = {
    "no hub": Case(GOOD[GOOD.index("hubs:") :], "", "names no hub: put the hub's host into the group 'hubs'"),
    "no camera": Case("cameras:", "webcams:", "names no camera: put the cameras' hosts into the group 'cameras'"),
    "a misspelt group": Case(
        "hubs:",
        "camera: {hosts: {pi4: {ansible_host: 192.0.2.4}, pi5: , pi3: }}\nhubs:",
        "pi4, pi5: in none of the fleet's groups, but in camera: did you mean cameras?",
    ),
    "names that differ in case": Case("pi3:", "PI2:", "pi2 and PI2: two hosts with one name"),
    "no hostname": Case("pi2:", "pi_2:", "pi_2: no hostname"),
    "an address for a name": Case("pi2:", "192.0.2.2:", "192.0.2.2: no hostname"),
    "a name too long": Case("pi2:", f"{'p' * 64}:", "pppp: no hostname"),
    "localhost": Case("pi2:", "localhost:", "localhost: every machine calls itself so"),
    "one address twice": Case("192.0.2.3", "192.0.2.2", "pi2 and pi3: two hosts with one address, 192.0.2.2"),
    "camera and hub at one address": Case("192.0.2.3", "192.0.2.9", "hub and pi3: two hosts with one address"),
    "a port of words": Case(
        HUB, hub("streamer_port: none"), "hub: streamer_port is 'none': it must be a number from 1024 to 65535"
    ),
    "a port too high": Case(HUB, hub("streamer_port: 65536"), "hub: streamer_port is 65536"),
    "a port of root's": Case(HUB, hub("streamer_port: 80"), "hub: streamer_port is 80"),
    "a page without a port": Case(HUB, hub("streamer_http: 127.0.0.1"), "hub: streamer_http is '127.0.0.1'"),
    "one port twice": Case(
        HUB, hub('streamer_http: "127.0.0.1:5555"'), "streamer_port and streamer_http both take port 5555"
    ),
    "a certificate without its key": Case(
        HUB,
        hub("hub_tls_certificate: /etc/hosts"),
        "hub: hub_tls_certificate is set and hub_tls_key is not: set both, or neither",
    ),
    "a key without its certificate": Case(
        HUB, hub("hub_tls_key: /etc/hosts"), "hub: hub_tls_key is set and hub_tls_certificate is not"
    ),
    "a certificate that is not there": Case(
        HUB,
        hub("hub_tls_certificate: /nowhere/cert.pem, hub_tls_key: /etc/hosts"),
        "hub: hub_tls_certificate is '/nowhere/cert.pem': there is no such file on this machine",
    ),
    "a key from somewhere": Case(
        HUB,
        hub("hub_tls_certificate: /etc/hosts, hub_tls_key: key.pem"),
        "hub: hub_tls_key is 'key.pem': it must be a path on this machine, absolute or from ~/",
    ),
    "a certificate for a hub that is not managed": Case(
        HUB,
        hub("hub_managed: false, hub_tls_certificate: /etc/hosts, hub_tls_key: /etc/hosts"),
        "hub: hub_tls_certificate is for a hub that Ansible manages",
    ),
    "an unknown hub": Case(
        PI2,
        pi2("streamer_hub: hubb"),
        "pi2: streamer_hub is 'hubb', which is not in the group 'hubs': did you mean hub?",
    ),
    "an unknown second hub": Case(PI2, pi2("streamer_hub: [hub, desk]"), "pi2: streamer_hub is 'desk'"),
    "an unknown camera": Case(
        PI2, pi2("streamer_camera: webcam"), "pi2: streamer_camera is 'webcam': it must be picamera2, usb:N, usb:/dev/"
    ),
    "a device that is none": Case(PI2, pi2('streamer_camera: "usb:door"'), "pi2: streamer_camera is 'usb:door'"),
    "an unknown key of the sender": Case(
        PI2,
        pi2("sender_options: {hflop: true}"),
        "sender_options has hflop, which no sender takes: did you mean hflip?",
    ),
    "a key that has its own variable": Case(
        PI2, pi2("sender_options: {fps: 5}"), "pi2: sender_options has fps: streamer_fps says that"
    ),
    "a quarter turn": Case(
        PI2, pi2("sender_options: {rotate: 90}"), "pi2: sender_options: rotate is 90: it must be 0 or 180"
    ),
    "options that are none": Case(
        PI2, pi2("sender_options: [hflip]"), "pi2: sender_options is ['hflip']: it must have keys of"
    ),
    "a picture that nothing turns": Case(
        PI2,
        pi2("streamer_camera: pattern, sender_options: {rotate: 180}"),
        "pi2: sender_options: rotate is set, but only the camera picamera2 has it: pictures of pattern are sent as",
    ),
    "a hidden video": Case(
        PI2, pi2('streamer_camera: "file:/home/pi/a.mp4"'), "pi2: the service cannot see /home/pi/a.mp4"
    ),
    "picamera2 on plain Debian": Case(
        PI2, pi2("streamer_pi_archive: false"), "pi2: picamera2 is only in the Raspberry Pi"
    ),
    "a size of one number": Case(PI2, pi2("streamer_size: 640"), "pi2: streamer_size is 640: it must be WIDTHxHEIGHT"),
    "an odd size": Case(PI2, pi2("streamer_size: 641x480"), "pi2: streamer_size is '641x480'"),
    "no frames": Case(PI2, pi2("streamer_fps: 0"), "pi2: streamer_fps is 0: it must be a number from 0.1 to 240"),
    "a quality above all": Case(PI2, pi2("streamer_quality: 101"), "pi2: streamer_quality is 101"),
    "a misspelt variable": Case(
        PI2, pi2("streamer_camra: pattern"), "no variable is called streamer_camra: did you mean streamer_camera?"
    ),
    "another misspelt variable": Case(
        PI2, pi2("node_firewal: true"), "pi2: no variable is called node_firewal: did you mean node_firewall?"
    ),
    "a hub that is a number": Case(
        PI2, pi2("streamer_hub: 5"), "pi2: streamer_hub is 5: it must be the name of a hub, or a list of names"
    ),
    "an endpoint for an address": Case(
        HUB,
        hub('streamer_address: "tcp://192.0.2.9"'),
        "hub: streamer_address is 'tcp://192.0.2.9': it must be an IP address or a host's name, as in 192.168.1.10",
    ),
    "no address but a name that is none": Case(
        HUB, "Anna's Mac: {hub_managed: false}", "Anna's Mac: cameras cannot reach a hub by such a name"
    ),
    "a hub that cameras cannot reach": Case(
        HUB, "hub: {ansible_connection: local}", "hub: Ansible reaches this hub locally"
    ),
    "a hub that cameras cannot reach, in Ansible's long words": Case(
        HUB, "hub: {ansible_connection: ansible.builtin.local}", "hub: Ansible reaches this hub locally"
    ),
    "a hub at every camera's own address": Case(
        "192.0.2.9", "127.0.0.1", "hub: 127.0.0.1 leads every camera to itself"
    ),
    "a port that is none": Case(
        PI2,
        pi2("node_firewall_ports: [http]"),
        "pi2: node_firewall_ports is ['http']: it must be a list of ports from 1 to",
    ),
    "one port and no list": Case(
        PI2, pi2("node_firewall_ports: 9100"), "pi2: node_firewall_ports is 9100: it must be a list"
    ),
    "options of the hub that are none": Case(
        HUB, hub("hub_options: 2x4"), "hub: hub_options is '2x4': it must have keys of hub.yml"
    ),
    "an unknown key of the hub": Case(
        HUB, hub("hub_options: {layuot: 2x4}"), "hub: hub_options has layuot, which no hub takes: did you mean layout?"
    ),
    "windows without a screen": Case(HUB, hub("streamer_display: windows"), "hub: windows need a screen"),
    "retired and still a camera": Case(
        "hubs:", "retired: {hosts: {pi3: }}\nhubs:", "pi3: it is in the group 'retired'"
    ),
}


def play(directory: Path, inventory: str, *arguments: str) -> tuple[int, str]:
    (directory / "hosts.yml").write_text(inventory)
    # A user's own configuration must not decide what this test sees.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_LOCAL_TEMP": str(directory), "COLUMNS": "300"}
    command = [str(PLAYBOOK), "-i", str(directory / "hosts.yml"), "deploy.yml", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


def edited(name: str) -> str:
    case = CASES[name]
    assert GOOD.count(case.old) == 1, name
    return GOOD.replace(case.old, case.new)


def problems_of(directory: Path, inventory: str) -> list[str]:
    """What the plays' check says of an inventory, asked as they ask it: to start Ansible for each takes a second."""
    (directory / "hosts.yml").write_text(inventory)
    loader = DataLoader()
    hosts = InventoryManager(loader, sources=[str(directory / "hosts.yml")])
    variables = HostVars(hosts, VariableManager(loader, hosts), loader)
    defaults = {name: value for role in ROLES for name, value in defaults_of(role).items()}
    return list(fleet.fleet_plan(hosts.get_groups_dict(), variables, defaults)["problems"])


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_inventory_is_refused_by_name(tmp_path: Path, name: str) -> None:
    problems = problems_of(tmp_path, edited(name))
    assert any(CASES[name].said in problem for problem in problems), problems
    assert all(problem.isprintable() for problem in problems)


@pytest.mark.parametrize(
    ("inventory", "said"),
    [
        (edited("no hub"), CASES["no hub"].said),
        (edited("an unknown hub"), CASES["an unknown hub"].said),
        # What Ansible itself refuses.
        (GOOD.replace("pi3:", "pi2:"), "pi2"),
        (GOOD.replace("pi2: {", "pi2: {{"), "hosts.yml"),
    ],
    ids=["no hub", "an unknown hub", "a name written twice", "no YAML"],
)
def test_a_wrong_inventory_ends_any_run_before_it_contacts_a_host(tmp_path: Path, inventory: str, said: str) -> None:
    status, output = play(tmp_path, inventory, "--tags=restart")
    assert status != 0
    assert any(said in line for line in output.splitlines()), output
    assert "UNREACHABLE" not in output
    assert "TASK [Restart" not in output


def test_all_mistakes_are_told_at_once_each_in_a_line(tmp_path: Path) -> None:
    inventory = GOOD.replace(PI2, pi2("streamer_fps: fast")).replace(HUB, hub("streamer_port: 0"))
    status, output = play(tmp_path, inventory)
    assert status != 0
    told = re.findall(r"^ +(pi2: streamer_fps is 'fast'.*|hub: streamer_port is 0.*)$", output, re.MULTILINE)
    assert len(set(told)) == 2, output


def test_the_limit_does_not_narrow_the_check(tmp_path: Path) -> None:
    status, output = play(tmp_path, GOOD.replace(PI2, pi2("streamer_hub: desk")), "--limit=pi1")
    assert status != 0
    assert "pi2: streamer_hub is 'desk'" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tags=stauts"], "no tag is called stauts: did you mean status? There are: restart, stop, start, status, "),
        (["--tags=restart,rolback", "--limit=pi1"], "no tag is called rolback: did you mean rollback? There are: "),
        (["--skip-tags=restart"], "--skip-tags=restart leaves out nothing: a deploy has no restart of its own, and "),
        (["--skip-tags=verfy"], "no tag is called verfy: did you mean verify? There are: restart, "),
        (["--tags=untagged"], "no tag is called untagged: there are: restart, stop, start, status, verify, rollback"),
        (["--tags=never,tagged"], "no tag is called never: there are: restart, stop, start, status, verify, rollback"),
        (["--tags=now", "--check"], "no tag is called now: there are: restart, stop, start, status, verify, rollback"),
    ],
)
def test_a_tag_that_no_play_has_is_refused(tmp_path: Path, arguments: list[str], said: str) -> None:
    status, output = play(tmp_path, GOOD, *arguments)
    assert status != 0
    assert said in output
    assert "UNREACHABLE" not in output
    assert "TASK [Restart" not in output


@pytest.mark.skipif(not shutil.which("ssh"), reason="needs ssh")
def test_a_camera_that_does_not_answer_is_not_said_to_have_a_journal(tmp_path: Path) -> None:
    nobody = "all: {vars: {ansible_port: 1}}\n"
    inventory = re.sub(r"192\.0\.2\.(\d)}", r"127.0.0.\1, streamer_address: 192.0.2.\1}", GOOD)
    status, output = play(tmp_path, nobody + inventory, "--tags=verify")
    assert status != 0
    for camera in ("pi1", "pi2", "pi3"):
        assert f"{camera} is not known to be LIVE: no answer from hub\n" in output
    assert "The camera itself does not answer:\n" in output
    assert "journal ends" not in output


@pytest.mark.parametrize("extra", ["", "streamer_curve=on node_exporter_version=1.9 sender_watchdog_s=60"])
def test_a_good_inventory_passes(tmp_path: Path, extra: str) -> None:
    # Ansible's own numbers, words and mappings are taken for what they are.
    inventory = GOOD.replace(PI2, pi2("streamer_fps: 5, sender_options: {rotate: 180, controls: {Ae: [true, 1.5]}}"))
    inventory = inventory.replace(HUB, hub("hub_options: {gone_after_s: 60, window_rows: 3}"))
    status, output = play(tmp_path, inventory, "--tags=always", f"--extra-vars={extra}")
    assert status == 0, output
    assert "UNREACHABLE" not in output


def test_a_variable_of_the_operator_s_is_not_taken_for_what_plays_have_found(tmp_path: Path) -> None:
    status, output = play(tmp_path, f"all: {{vars: {{fleet: home, wall_password: x}}}}\n{GOOD}", "--tags=always")
    assert status == 0, output


def test_a_group_s_variables_hold_unless_group_vars_sets_them(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(GOOD.replace("cameras:", "cameras:\n  vars: {streamer_size: 1280x720}"))
    (tmp_path / "group_vars").symlink_to(ROOT / "group_vars")
    command = [str(PLAYBOOK.with_name("ansible-inventory")), "-i", str(tmp_path / "hosts.yml"), "--host", "pi2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["streamer_size"] == "1280x720"


def test_the_example_inventory_passes() -> None:
    command = [str(PLAYBOOK), "deploy.yml", "--tags=always"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
