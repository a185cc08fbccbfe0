"""The whole chain for real: nine blank Debian hosts, provisioned over SSH, streaming, and what may befall them.

The tests go through one fleet's life in the order in which they stand here.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.conftest import until
from tests.lab import lab
from tests.lab.cgroups import NAME, Group

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CHECKOUT = lab.CHECKOUT
INVENTORY = CHECKOUT / "tests/lab/hosts.yml"
PASSWORD = CHECKOUT / "secrets/wall_password"
CAMERAS = [f"pi{number}" for number in range(1, 9)]
HOSTS = ["hub", *CAMERAS]
LIVE_WITHIN_S = 30.0
WATCHDOG_S = 10.0  # instead of the roles' 30
STOP_S = 5.0
UPGRADE_GAP_S = 3.0
# Ours to use without asking: the lab's hosts are made for it.
pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Play:
    """What a run of ansible-playbook did."""

    status: int
    output: str
    seconds: float

    @property
    def changed(self) -> dict[str, int]:
        """How many tasks changed something, by host."""
        recap = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", self.output, re.MULTILINE)
        return {host: int(count) for host, count in recap}


def command(*arguments: str, inventory: Path = INVENTORY) -> list[str]:
    return [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), "deploy.yml", *arguments]


def play(
    *arguments: str, inventory: Path = INVENTORY, source: Path = CHECKOUT, variables: Mapping[str, str] | None = None
) -> Play:
    """Run the one command from a checkout, and keep what it says; `variables` are of its environment."""
    began = time.monotonic()
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", **(variables or {})}
    argv = command(*arguments, inventory=inventory)
    done = subprocess.run(
        argv, cwd=source, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return Play(done.returncode, done.stdout + done.stderr, time.monotonic() - began)


def deploy(*arguments: str, inventory: Path = INVENTORY, source: Path = CHECKOUT) -> Play:
    """Play, and fail with all that it said when it fails."""
    done = play(*arguments, inventory=inventory, source=source)
    assert done.status == 0, done.output
    return done


def power_cut(cut: str) -> dict[str, str]:
    """The variables of a deploy that is cut off; callbacks/power_cut.py says how."""
    callbacks = CHECKOUT / "tests/lab/callbacks"
    return {
        "POWER_CUT": cut,
        "ANSIBLE_CALLBACK_PLUGINS": str(callbacks),
        "ANSIBLE_CALLBACKS_ENABLED": "power_cut",
    }


def on(host: str, command: str) -> str:
    """Run a shell command as root on a host, and return what it prints."""
    done = lab.inside(host, "sh", "-c", command)
    assert done.returncode == 0, f"{host}: {command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def wall() -> str:
    """The address of the hub's page, outside the lab."""
    port = (lab.RUN / "http").read_text().strip()
    return f"http://127.0.0.1:{port}"


def table() -> dict[str, dict[str, Any]]:
    """What the hub says, read from outside the lab, by camera; nothing while it does not answer."""
    try:
        credentials = base64.b64encode(f":{PASSWORD.read_text().strip()}".encode()).decode()
        request = urllib.request.Request(f"{wall()}/api/cameras", headers={"Authorization": f"Basic {credentials}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return {row["name"]: row for row in json.load(answer)}
    except (OSError, ValueError):
        return {}


def all_live(names: list[str] = CAMERAS) -> None:
    """Wait until these cameras are LIVE and their frames go on."""
    first_seen: dict[str, int] = {}

    def moving() -> bool:
        rows = table()
        for name, row in rows.items():
            first_seen[name] = min(first_seen.get(name, row["frames"]), row["frames"])  # a new hub counts from 0
        return all(
            name in rows and rows[name]["state"] == "LIVE" and rows[name]["frames"] > first_seen[name] for name in names
        )

    until(moving, LIVE_WITHIN_S)


def unit_of(host: str) -> str:
    return "streamer-hub" if host == "hub" else "streamer-sender"


def unit_file(host: str) -> str:
    return f"/etc/systemd/system/{unit_of(host)}.service"


def process(host: str) -> int:
    """The process of a host's service; 0 while it has none."""
    return int(on(host, f"systemctl show --property=MainPID --value {unit_of(host)}"))


def processes() -> dict[str, int]:
    return {host: process(host) for host in HOSTS}


class Gaps:
    """Watches the hub's count of each camera's frames, and notes for how long it stood still."""

    LEAST_S = 0.4

    def __init__(self) -> None:
        self.of: dict[str, list[float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        last: dict[str, tuple[int, float]] = {}
        while not self._ended.wait(0.05):
            for name, row in table().items():
                now = time.monotonic()
                frames, at = last.get(name, (-1, now))
                if row["frames"] not in (0, frames):  # a hub that was restarted begins at 0
                    if now - at > self.LEAST_S:
                        self.of.setdefault(name, []).append(round(now - at, 1))
                    last[name] = row["frames"], now

    def __enter__(self) -> Gaps:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture(scope="module", autouse=True)
def hosts() -> Iterator[None]:
    """Nine blank hosts."""
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
        if "CI" in os.environ:
            pytest.fail("under CI the lab must run: as root on Debian or Ubuntu")
        pytest.skip("the lab needs root on Debian or Ubuntu")
    lab.down()
    lab.up(os.environ.get("SUITE"))
    yield
    lab.down()


def later_source(place: Path, version: str) -> Path:
    """The same project with a later version of the package."""
    copy = place / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", ".lab", "build", "__pycache__", ".*_cache")
    shutil.copytree(CHECKOUT, copy, ignore=ignored, symlinks=True)
    module = copy / "streamer/__init__.py"
    text, count = re.subn(r'__version__ = "[^"]+"', f'__version__ = "{version}"', module.read_text())
    assert count == 1
    module.write_text(text)
    return copy


def edited(place: Path, *, without: str = "", **groups: dict[str, dict[str, Any]]) -> Path:
    """A copy of the lab's inventory without one host, and with others put into groups or changed."""
    inventory = yaml.safe_load(INVENTORY.read_text())
    for group in inventory.values():
        group.get("hosts", {}).pop(without, None)
    for group, members in groups.items():
        present = inventory.setdefault(group, {"hosts": {}})["hosts"]
        for host, variables in members.items():
            present[host] = {**(present.get(host) or {}), **variables}
    place.write_text(yaml.safe_dump(inventory))
    return place


def test_check_mode_on_blank_hosts_says_what_would_change_and_changes_nothing() -> None:
    # As some hosts are: a name with comments and a domain, and a login whose files are nobody else's to read.
    on("pi3", r"printf '# hostname(5) allows it.\n\nraspberrypi\n' >/etc/hostname")
    on("pi3", "sed -i 's/^127.0.1.1.*/127.0.1.1 raspberrypi.example.org raspberrypi/' /etc/hosts")
    on("pi8", "echo 'session optional pam_umask.so umask=077' >>/etc/pam.d/common-session")
    alone = play("--check", "--limit", "pi1")
    assert alone.status != 0
    told = (
        "hub has no key, since it was never deployed: deploy without --limit to have one for pi1; nothing was switched"
    )
    assert told in " ".join(alone.output.split()), alone.output

    done = deploy("--check", "--diff")
    for host in HOSTS:
        assert f"raspberrypi -> {host}\n" in done.output
        assert re.search(rf"\[{host}\].*\n.*no release -> \S+\.py\d+\n", done.output), done.output
        assert on(host, "hostname; ls -d /opt/streamer /etc/streamer 2>/dev/null || true") == "raspberrypi"


def test_first_deploy_ends_with_all_cameras_live() -> None:
    done = deploy()
    rows = table()
    assert sorted(rows) == CAMERAS, done.output
    assert {row["state"] for row in rows.values()} == {"LIVE"}
    all_live()
    told = " ".join(done.output.split())
    assert f"http://198.18.0.10:8080/ asks for the password in {PASSWORD}" in told
    assert PASSWORD.read_text().strip() not in done.output
    assert "curve-secret" not in done.output


def test_keys_are_private_and_each_sends_under_its_own_name() -> None:
    for host in HOSTS:
        part = "hub" if host == "hub" else "sender"
        assert on(host, f"stat -c '%a %U' /etc/streamer/{part}.key") == "600 streamer"
        assert on(host, "journalctl -o cat | grep -c 'curve-[s]ecret:' || true") == "0"
    allowed = on("hub", "cat /etc/streamer/allowed_keys").splitlines()[1:]
    assert allowed == [f"{name} {on(name, 'cat /etc/streamer/sender.pub')}" for name in CAMERAS]
    # As root, who may read the key. Nobody knows how many tries a hub that is busy takes to say why.
    send = "/opt/streamer/current/bin/streamer send --hub tcp://198.18.0.10:5555 --name pi4 --camera pattern"
    keys = "--key /etc/streamer/sender.key --hub-key $(sed -n 's/^- curve/curve/p' /etc/streamer/sender.yml)"
    strangers = {
        send: "takes encrypted frames only: this sender has no keys",
        f"{send} {keys}": "its key is that of pi3, so it may not send as pi4",
    }
    for stranger, why in strangers.items():
        on("pi3", f"systemd-run --quiet --collect --unit=stranger {stranger}")
        try:
            until(lambda: why in on("pi3", "journalctl -o cat -u stranger"), LIVE_WITHIN_S)  # noqa: B023 - called here
        finally:
            on("pi3", "systemctl stop stranger")


def test_wall_asks_for_the_password_but_not_at_the_socket() -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{wall()}/api/cameras", timeout=5)
    refused.value.close()
    assert refused.value.code == 401
    placed = "stat -c '%a %U %G' /etc/streamer/wall_password /run/streamer/hub.sock"
    assert on("hub", placed).splitlines() == ["640 root streamer", "660 streamer streamer"]
    assert "pi1" in on("hub", "/opt/streamer/current/bin/streamer status")
    stranger = on("hub", "runuser -u nobody -- /opt/streamer/current/bin/streamer status 2>&1 || true")
    assert "asks for a password: give --password-file FILE" in stranger


def python(host: str, code: str) -> str:
    """Run some Python on a host, and return the last line of what it says."""
    program = f"from socket import *\n{code}"
    said = on(host, f"python3 -c {shlex.quote(program)} 2>&1 || true")
    return (said.splitlines() or ["done"])[-1]


def connect(host: str, port: int, *, source: str = "pi2") -> str:
    return python(source, f"create_connection(('{lab.HOSTS[host]}', {port}), 5).close()")


def has_firewall(host: str) -> bool:
    return "table inet streamer" in on(host, "nft list tables 2>/dev/null || true").splitlines()


def test_firewall_refuses_all_that_is_not_used() -> None:
    assert [host for host in HOSTS if has_firewall(host)] == ["hub", "pi1", "pi5"]
    others = ["hub", "pi1", "pi3"]
    for host in others:
        on(host, "systemd-run --quiet --unit=other-program python3 -m http.server 9100")
    try:
        until(lambda: all(connect(host, 9100, source=host) == "done" for host in others), LIVE_WITHIN_S)
        told = [connect(host, 9100) for host in others]
        refused = "OSError: [Errno 113] No route to host"
        assert told == [refused, refused, "done"], "at once, and not where there is no firewall"
        assert [connect(*door) for door in (("hub", 22), ("hub", 5555), ("hub", 8080), ("pi1", 22))] == ["done"] * 4
        ping = r"s = socket(2, SOCK_RAW, 1); s.settimeout(5); s.sendto(b'\x08\0\xf7\xff\0\0\0\0', (%r, 0)); s.recv(99)"
        assert python("pi2", ping % lab.HOSTS["hub"]) == "done"
        # Debian's own service flushes every table.
        on("hub", "systemctl start nftables")
        for verbs in ("restart", "reload", "stop start"):
            for verb in verbs.split():
                on("hub", f"systemctl {verb} nftables")
            until(lambda: has_firewall("hub"))
            assert connect("hub", 9100) == refused
        on("hub", "systemctl stop nftables; systemctl start streamer-firewall")
    finally:
        for host in others:
            on(host, "systemctl stop other-program")
    all_live()


def test_firewall_leaves_a_host_alone_that_has_another(tmp_path: Path) -> None:
    rules = """add table inet other
    add chain inet other input { type filter hook input priority 0; policy drop; }
    add rule inet other input ct state established accept
    add rule inet other input tcp dport 22 accept"""
    on("pi5", f"echo '{rules}' | nft -f -")
    more = edited(tmp_path / "hosts.yml", cameras={"pi5": {"node_firewall_ports": [9100]}})
    try:
        done = play("--check", "--limit", "pi5", "-e", "node_firewall=true", inventory=more)
    finally:
        on("pi5", "nft delete table inet other")
    assert done.status != 0
    told = "pi5: the table inet other lets in what it knows and refuses the rest"
    assert told in " ".join(done.output.split()), done.output
    assert "open 22, 9100 there" in " ".join(done.output.split()), done.output


def test_another_firewall_of_the_hub_is_told_before_anything_is_switched(tmp_path: Path) -> None:
    rules = """add table inet other
    add chain inet other input { type filter hook input priority 0; policy drop; }
    add rule inet other input ct state established accept
    add rule inet other input tcp dport { 22, 5555, 8080 } accept"""
    changed = edited(
        tmp_path / "hosts.yml",
        hubs={"hub": {"node_firewall_ports": [9100], "hub_options": {"gone_after_s": 60}}},
        cameras={"pi2": {"streamer_quality": 70}},
    )
    before = processes()
    on("hub", f"echo '{rules}' | nft -f -")
    try:
        done = play("--limit", "hub,pi2", inventory=changed)
    finally:
        on("hub", "nft delete table inet other")
    assert done.status != 0
    told = " ".join(done.output.split())
    assert "hub: the table inet other lets in what it knows and refuses the rest" in told, done.output
    assert "not prepared, see above: hub; nothing was switched on any host" in told, done.output
    assert processes() == before


def is_locked(host: str) -> bool:
    lease = f"/run/streamer-deploy/{host}"
    return on("hub", f"[ $(cut -d' ' -f1 {lease}) -gt $(cut -d. -f1 /proc/uptime) ] && echo yes || true") == "yes"


def test_second_deploy_is_refused_while_one_is_under_way() -> None:
    before = processes()
    first = subprocess.Popen(command(), cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: is_locked("pi3"), LIVE_WITHIN_S)
        first.send_signal(signal.SIGSTOP)  # it takes long
        for arguments in ([], ["--tags", "restart", "--limit", "pi3"], ["--tags", "rollback"]):
            refused = play(*arguments)
            assert refused.status != 0
            told = " ".join(refused.output.split())
            assert re.search(rf"\w+ is being changed by \S+@\S+ \(process {first.pid}, since ", told), told
            assert {host: count for host, count in refused.changed.items() if count} == {}
        deploy("--tags", "status")
    finally:
        first.kill()
        first.wait()
    until(lambda: not is_locked("pi3"), 5)  # although it could not give it back
    assert processes() == before


def test_check_mode_on_deployed_hosts_finds_nothing_to_change() -> None:
    # Nor does it need what Ansible's module for apt works by; hidden, since the lab has it once for all hosts.
    python3_apt, status = "/usr/lib/python3/dist-packages/apt_pkg*.so", "/var/lib/dpkg/status"
    on("pi6", f"mkdir /run/apt && mv {python3_apt} /run/apt && cp {status} /run/apt")
    on("pi6", f"sed -i '/^Package: python3-apt$/,/^Status:/s/^Status:.*/Status: deinstall ok config-files/' {status}")
    # By -e, as by an inventory in INI, false is a text.
    done = deploy("--check", "--diff", "-e", "node_journal_persistent=false", "-e", "streamer_releases_kept=3")
    assert {host: count for host, count in done.changed.items() if count} == {}, done.output
    on("pi6", f"cp /run/apt/status {status} && mv /run/apt/*.so /usr/lib/python3/dist-packages")


def test_second_deploy_from_a_second_control_machine_takes_the_password_and_changes_nothing() -> None:
    before, password = processes(), PASSWORD.read_text()
    PASSWORD.unlink()
    done = deploy()
    assert PASSWORD.read_text() == password
    assert password.strip() not in done.output
    assert set(done.changed) >= set(HOSTS)
    assert {host: count for host, count in done.changed.items() if count} == {"localhost": 1}, done.output
    assert processes() == before


def test_hub_with_a_new_card_is_deployed_with_all_cameras() -> None:
    before = processes()
    on("hub", "rm /etc/streamer/hub.key /etc/streamer/hub.pub /etc/streamer/allowed_keys")
    for _ in range(2):  # though it has a key by the second time
        done = play("--limit", "hub")
        assert done.status != 0
        told = f"hub: it knows no camera yet, and {', '.join(CAMERAS)} need its key: deploy without --limit;"
        assert told in " ".join(done.output.split()), done.output
    assert processes() == before
    deploy()
    all_live()


@pytest.mark.parametrize("host", HOSTS)
def test_host_is_what_its_name_says(host: str) -> None:
    unit = unit_of(host)
    other = "streamer-sender" if host == "hub" else "streamer-hub"
    told = on(
        host,
        f"""hostname; cat /etc/hostname; getent hosts {host} >/dev/null && echo resolves
        systemctl is-enabled {unit}; systemctl is-active {unit}; systemctl is-active {other} || true
        ps -o user= -p $(systemctl show --property=MainPID --value {unit})
        systemd-analyze security --no-pager {unit} | tail -n 1""",
    ).splitlines()
    assert told[:-1] == [host, host, "resolves", "enabled", "active", "inactive", "streamer"]
    assert float(re.findall(r"level for \S+: ([\d.]+)", told[-1])[0]) <= 3.0
    assert on(host, "hostname --fqdn") == ("pi3.example.org" if host == "pi3" else host)


def test_two_cameras_send_real_footage() -> None:
    rows = table()
    shapes = {name: (row["width"], row["height"]) for name, row in rows.items()}
    assert {shapes[name] for name in CAMERAS[:6]} == {(640, 480)}
    assert all(shapes[name] != (640, 480) for name in CAMERAS[6:]), "a video keeps its proportions"


def test_restart_of_one_touches_no_other() -> None:
    before = processes()
    deploy("--tags", "restart", "--limit", "pi3")
    after = processes()
    assert [host for host in HOSTS if after[host] != before[host]] == ["pi3"]
    all_live()


def test_restart_restarts_every_stream() -> None:
    before = processes()
    deploy("--tags", "restart")
    after = processes()
    assert [host for host in HOSTS if after[host] == before[host]] == []
    all_live()


def test_stop_start_status_and_verify() -> None:
    before = processes()
    deploy("--tags", "stop", "--limit", "pi3")
    assert process("pi3") == 0
    assert [host for host, number in processes().items() if number != before[host]] == ["pi3"]
    until(lambda: table()["pi3"]["state"] == "STALE", LIVE_WITHIN_S)

    status = deploy("--tags", "status").output
    assert re.search(r"pi3\b.*\binactive\b", status), status
    assert re.search(r"pi4\b.*\bLIVE\b", status), status

    missing = play("--tags", "verify", "-e", "live_within_s=3")
    assert missing.status != 0
    assert re.search(r"pi3\b.*\b(STALE|GONE)\b", missing.output), missing.output
    assert play("--tags", "verify", "--limit", "pi4").status == 0

    deploy("--tags", "start", "--limit", "pi3")
    deploy("--tags", "verify")
    all_live()


def test_camera_that_cannot_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    # One that has PyAV already: another would first unpack it for some ten seconds.
    variables = {"streamer_camera": "file:/srv/nothing.mp4", "sender_start_timeout_s": 10}
    broken = edited(tmp_path / "hosts.yml", cameras={"pi7": variables})
    try:
        done = play("--limit", "pi7", inventory=broken)
        assert done.status != 0
        assert re.search(r"pi7: streamer-sender not (re)?started", done.output), done.output
        assert "file:/srv/nothing.mp4: there is no such file" in done.output, done.output
        assert "runs again what it ran before" in done.output, done.output
        all_live()
        on("pi7", "rm /etc/streamer/sender.key")  # a new card has none
    finally:
        before = processes()
        # It gets its key to its hub although another, its second choice, is away.
        spare = {"spare": {"ansible_host": "198.18.0.99"}}
        two = edited(tmp_path / "two.yml", hubs=spare, cameras={"pi7": {"streamer_hub": ["hub", "spare"]}})
        done = deploy("--limit", "pi7", inventory=two)
    assert "spare: no answer, or no key." in " ".join(done.output.split()), done.output
    all_live()
    assert [host for host, number in processes().items() if number != before[host]] == ["pi7"], "the hub goes on too"


def test_host_that_fails_before_anything_is_switched_is_not_taken_for_one_that_is_away(tmp_path: Path) -> None:
    wrong = edited(
        tmp_path / "hosts.yml",
        hubs={"hub": {"streamer_display": "windows", "hub_display_user": "anna"}},
        cameras={"pi4": {"ansible_become_user": "anna"}},
    )
    done = play("--check", "--limit", "hub,pi3,pi4", inventory=wrong)
    assert done.status != 0
    told = " ".join(done.output.split())
    assert "hub: hub_display_user is anna: this host has no such user" in told, done.output
    assert "not prepared, see above: hub, pi4; nothing was switched on any host" in told, done.output


def test_what_fails_between_switch_and_start_leaves_nothing_switched(tmp_path: Path) -> None:
    source = later_source(tmp_path, "96.0")
    first = on("pi4", "readlink /opt/streamer/current")
    # When the inventory is looked at, this is a good number still.
    later = "{{ 'soon' if node_found is defined else 30 }}"
    wrong = edited(tmp_path / "hosts.yml", cameras={"pi4": {"sender_watchdog_s": later}})
    done = play("--limit", "pi4", source=source, inventory=wrong)
    assert done.status != 0
    assert re.search(r"pi4: .*runs again what it ran before", " ".join(done.output.split())), done.output
    assert on("pi4", "readlink /opt/streamer/current") == first
    all_live()


def test_hub_that_does_not_start_has_its_certificate_still(tmp_path: Path) -> None:
    certificate, key = str(tmp_path / "wall.crt"), str(tmp_path / "wall.key")
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa",
        "-nodes",
        "-subj",
        "/CN=hub",
        "-out",
        certificate,
        "-keyout",
        key,
    ]
    subprocess.run(make, check=True, capture_output=True)
    tls = {"hub_tls_certificate": certificate, "hub_tls_key": key}
    deploy("--limit", "hub", inventory=edited(tmp_path / "tls.yml", hubs={"hub": tls}))
    broken = {"hub_options": {"plain_bind": "tcp://192.0.2.1:5556"}}  # not an address of its own
    done = play("--limit", "hub", inventory=edited(tmp_path / "broken.yml", hubs={"hub": broken}))
    assert done.status != 0
    assert re.search(r"hub: .*runs again what it ran before", " ".join(done.output.split())), done.output
    look = (
        "grep -c /etc/streamer/wall.crt /etc/streamer/hub.yml; ls /etc/streamer/wall*; systemctl is-active streamer-hub"
    )
    files = [f"/etc/streamer/{name}" for name in ("wall.crt", "wall.key", "wall_password")]
    assert on("hub", look).splitlines() == ["1", *files, "active"]
    deploy("--limit", "hub")
    assert on("hub", "ls /etc/streamer/wall*").splitlines() == ["/etc/streamer/wall_password"]
    all_live()


def test_windows_are_there_while_a_screen_is_and_the_hub_meanwhile_and_after(tmp_path: Path) -> None:
    windows = {"streamer_display": "windows", "hub_display_user": "pi"}
    deploy("--limit", "hub", inventory=edited(tmp_path / "hosts.yml", hubs={"hub": windows}))
    all_live()
    journal = "journalctl -o cat -u streamer-hub _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID streamer-hub)"
    until(lambda: "no screen at :0: the windows open when there is one" in on("hub", journal), 20)
    on("hub", "apt-get install -qy --no-install-recommends xvfb openbox x11-utils")
    # Not the usual one: its user's manager has to be asked, from within all that the unit forbids.
    as_pi = "systemd-run --quiet --uid=pi --setenv=XDG_RUNTIME_DIR=/run/user/1000"
    on("hub", "install -d -m 700 -o pi /run/user/1000")
    on("hub", f"{as_pi} --unit=manager --property=Delegate=yes --property=Type=notify /usr/lib/systemd/systemd --user")
    on("hub", f"{as_pi} --unit=screen Xvfb :7 -screen 0 1920x1080x24")
    on("hub", f"{as_pi} --unit=desktop --property=Restart=always --property=RestartSec=1 --setenv=DISPLAY=:7 openbox")
    on("hub", f"{as_pi} --wait systemctl --user set-environment DISPLAY=:7")
    try:
        shown = "xwininfo -display :7 -root -tree | sed -n 's/.* \"\\(pi[1-8]\\)\".*/\\1/p' | sort -u | xargs"
        until(lambda: on("hub", shown).split() == CAMERAS, LIVE_WITHIN_S)
    finally:
        on("hub", "systemctl stop desktop screen manager")
    all_live()
    deploy("--limit", "hub")
    all_live()


def test_camera_that_was_stolen_is_refused_until_it_is_added_again(tmp_path: Path) -> None:
    before = processes()
    lab.kill("pi8")
    stolen = yaml.safe_load(INVENTORY.read_text())["cameras"]["hosts"]["pi8"]
    off = {"hub": {"node_firewall": False}}
    without = edited(tmp_path / "hosts.yml", without="pi8", retired={"pi8": stolen}, hubs=off)
    done = deploy("--limit", "hub,pi8", inventory=without)
    assert "no answer from pi8, which is retired" in " ".join(done.output.split()), done.output
    assert not has_firewall("hub"), "it is taken down with the same deploy"
    lab.start("pi8")
    until(lambda: "refuses this sender's key" in on("pi8", "journalctl -u streamer-sender -o cat"), LIVE_WITHIN_S)
    deploy("--limit", "hub,pi8")
    assert has_firewall("hub")
    all_live()
    after = processes()
    assert [name for name in CAMERAS[:-1] if after[name] != before[name]] == []


@pytest.mark.parametrize("host", ["pi2", "pi5"])
def test_name_and_stream_survive_a_reboot(host: str) -> None:
    cloud_init = on(host, "test -e /etc/cloud/cloud.cfg && echo yes || echo no")
    assert cloud_init == ("yes" if host in lab.CLOUD_INIT_HOSTS else "no")
    boot = on(host, "cat /proc/1/stat | cut -d' ' -f22")
    lab.reboot(host)
    assert on(host, "cat /proc/1/stat | cut -d' ' -f22") != boot
    all_live()
    if cloud_init == "yes":
        until(lambda: "done" in on(host, "cloud-init status || true"), 60)
    assert on(host, "hostname") == host
    assert on(host, f"getent hosts {host}")
    assert has_firewall(host) == (host == "pi5")


def test_hub_that_is_killed_comes_back_and_so_do_all_cameras() -> None:
    before = processes()
    on("hub", f"kill -9 {before['hub']}")
    until(lambda: process("hub") not in (0, before["hub"]), LIVE_WITHIN_S)
    all_live()
    after = processes()
    assert [host for host in HOSTS if after[host] != before[host]] == ["hub"], "no sender was restarted"


def test_hub_that_is_away_is_told() -> None:
    before = processes()
    lab.kill("hub")
    status = deploy("--tags", "status").output
    assert "hub: no answer" in status, status
    assert re.search(r"pi4: streamer-sender active, release \d", status), status
    for arguments, told in {
        ("--tags", "verify"): "pi4 is not known to be LIVE: no answer from hub",
        (): "no answer from hub, the hub of pi4; nothing was switched on any host",
    }.items():
        done = play("--limit", "pi4", *arguments)
        assert done.status != 0
        assert told in " ".join(done.output.split()), done.output
    lab.start("hub")
    all_live()
    after = processes()
    assert [host for host in HOSTS if after[host] != before[host]] == ["hub"]


def restarts(host: str) -> int:
    """How often systemd has restarted a host's service by itself."""
    return int(on(host, f"systemctl show --property=NRestarts --value {unit_of(host)}"))


def drop_in(host: str, lines: str) -> None:
    """Change a host's service beside the role's own unit; without lines, take that back."""
    place = f"/etc/systemd/system/{unit_of(host)}.service.d"
    text = shlex.quote(f"[Service]\n{lines}\n")
    write = f"mkdir -p {place} && printf %s {text} >{place}/test.conf" if lines else f"rm -r {place}"
    on(host, f"{write} && systemctl daemon-reload")


def test_watchdog_restarts_what_is_stuck_and_nothing_else() -> None:
    # All at once, with a shorter watchdog than the roles', and still it takes its time.
    for host in HOSTS:
        assert on(host, f"systemctl show --property=WatchdogUSec --value {unit_of(host)}") == "30s"
    program = base64.b64encode((CHECKOUT / "tests/chaos/program.py").read_bytes()).decode()
    faults = {"hub": "wall", "pi3": "camera", "pi4": "sending"}  # an event loop, a sensor, a thread
    lines = dict.fromkeys(HOSTS, f"WatchdogSec={WATCHDOG_S:g}")
    for host in faults:
        on(host, f"mkdir -p /srv/faults && echo {program} | base64 -d >/srv/program.py")
        command = on(host, f"sed -n 's,^ExecStart=/opt/streamer/current/bin/streamer ,,p' {unit_file(host)}")
        start = f"ExecStart=/opt/streamer/current/bin/python /srv/program.py {command}"
        lines[host] += f"\nEnvironment=CHAOS_FAULTS=/srv/faults\nExecStart=\n{start}"
    for host in HOSTS:
        drop_in(host, lines[host])
        on(host, f"systemctl restart {unit_of(host)}")
    all_live()

    def watchdogs(host: str) -> int:
        told = f"Watchdog timeout (limit {WATCHDOG_S:g}s)"
        return on(host, f"journalctl --output=cat --unit={unit_of(host)}").count(told)

    stuck = [*faults, "pi5"]
    before = {host: restarts(host) for host in HOSTS}
    starved = {host: watchdogs(host) for host in stuck}
    for host, fault in faults.items():
        on(host, f"printf hangs >/srv/faults/{fault}")
    on("pi5", f"kill -STOP {process('pi5')}")  # all of it
    until(lambda: all(watchdogs(host) > starved[host] for host in stuck), WATCHDOG_S + STOP_S)
    for host in faults:
        on(host, "rm -r /srv/faults")
    until(lambda: all(restarts(host) > before[host] for host in stuck), LIVE_WITHIN_S)
    all_live()

    # A hub that is away for longer than the senders' watchdog waits: what is stopped does not even end by SIGABRT.
    on("hub", f"kill -STOP {process('hub')}")
    until(lambda: restarts("hub") > before["hub"] + 1, WATCHDOG_S + 2 * STOP_S)
    all_live()
    assert {host: restarts(host) - before[host] for host in HOSTS} == {
        host: 2 if host == "hub" else int(host in stuck) for host in HOSTS
    }

    for host in HOSTS:
        drop_in(host, "")
        on(host, f"rm -f /srv/program.py; systemctl restart {unit_of(host)}")
    all_live()


def test_camera_that_ends_again_and_again_is_never_given_up() -> None:
    burst = int(on("pi6", "systemctl show --property=DefaultStartLimitBurst --value"))
    before = restarts("pi6")
    drop_in("pi6", "ExecStart=\nExecStart=/bin/false\nRestartSec=50ms\nRestartSteps=0")
    on("pi6", f"kill -9 {process('pi6')}")
    until(lambda: restarts("pi6") >= before + 4 * burst, LIVE_WITHIN_S)
    drop_in("pi6", "")
    all_live()  # nobody has started it
    on("pi6", "systemctl restart streamer-sender")  # the next pause is short again


def test_plug_that_is_pulled_and_put_back() -> None:
    lab.kill("pi6")
    until(lambda: table()["pi6"]["state"] != "LIVE", LIVE_WITHIN_S)
    lab.start("pi6")
    all_live()


def test_power_cut_in_the_middle_of_a_deploy_is_made_good_by_the_next(tmp_path: Path) -> None:
    """One of the cuts that `make power-cuts` tries."""
    changed = edited(tmp_path / "hosts.yml", cameras={"pi5": {"streamer_quality": 70}})
    done = play("--limit", "pi5", inventory=changed, variables=power_cut("pi5|after|Write sender.yml|0"))
    assert done.status != 0
    assert not lab.is_up("pi5"), done.output
    lab.start("pi5")
    all_live()
    deploy("--limit", "pi5")
    done = deploy("--limit", "pi5")
    assert set(done.changed.values()) == {0}, done.output  # nor on this machine, which has the password


def test_overlay_that_would_forget_all_is_told_before_anything_is_written(tmp_path: Path) -> None:
    # A lab's host is on an overlay of its own; what raspi-config's makes of the kernel's command line is put over it.
    on("pi8", "sed 's/^/overlayroot=tmpfs /' /proc/cmdline >/run/cmdline && mount --bind /run/cmdline /proc/cmdline")
    try:
        changed = edited(tmp_path / "hosts.yml", cameras={"pi8": {"streamer_quality": 70}})
        done = play("--limit", "pi8", inventory=changed)
        assert done.status != 0
        assert "pi8: its overlay file system is on" in " ".join(done.output.split()), done.output
        assert "changed=0" in done.output
    finally:
        on("pi8", "umount /proc/cmdline")
    all_live()


def test_sudo_that_asks_for_a_password(tmp_path: Path) -> None:
    on("pi6", "useradd -m -s /bin/bash -G sudo anna && echo anna:secret | chpasswd")
    on("pi6", "cp -r /home/pi/.ssh /home/anna && chown -R anna: /home/anna/.ssh")
    hers = edited(tmp_path / "hosts.yml", cameras={"pi6": {"ansible_user": "anna", "streamer_quality": 70}})
    assert "Missing sudo password" in play("--limit", "pi6", inventory=hers).output
    (tmp_path / "password").write_text("secret\n")
    asked = ["--become-password-file", str(tmp_path / "password")]  # as -K does from a terminal
    assert deploy("--limit", "pi6", *asked, inventory=hers).changed["pi6"] > 0
    deploy("--limit", "pi6", "--tags", "restart", *asked, inventory=hers)
    assert deploy("--limit", "pi6").changed["pi6"] > 0
    all_live()


def full(place: str) -> str:
    """The command that makes a full disk of a directory, with all that is in it."""
    return (
        f"mkdir /run/was && cp -a {place}/. /run/was && mount -t tmpfs -o size=200m tmpfs {place} && "
        f"cp -a /run/was/. {place} && rm -r /run/was && ! dd if=/dev/zero of={place}/full bs=64k 2>&1"
    )


def test_full_disk_is_told_before_anything_is_switched(tmp_path: Path) -> None:
    source = later_source(tmp_path, "97.0")
    first, before = on("pi4", "readlink /opt/streamer/current"), processes()
    inventory = edited(tmp_path / "hosts.yml", cameras={"pi4": {"streamer_camera": "file:/srv/footage/bikes.mp4"}})
    for place, needs in {
        "/var": r"pi4: 0 MB free in /usr and /var, \d{3} MB needed for python3-av:",
        "/opt/streamer": r"pi4: 0 MB free in /opt/streamer, 30 MB needed for a release:",
    }.items():
        on("pi4", full(place))
        done = play("--limit", "pi4", source=source, inventory=inventory if place == "/var" else INVENTORY)
        assert done.status != 0
        assert re.search(needs, " ".join(done.output.split())), done.output
        all_live()
        on("pi4", f"umount --lazy {place}")
    assert on("pi4", "readlink /opt/streamer/current") == first
    assert processes() == before


def test_release_that_does_not_start_stays_on_no_camera(tmp_path: Path) -> None:
    source = later_source(tmp_path, "98.0")
    with (source / "streamer/sender.py").open("a") as module:
        module.write('raise RuntimeError("a release that is broken")\n')
    first, before = on("pi1", "readlink /opt/streamer/current"), processes()
    # The hub asks nobody meanwhile: the way back needs the password that it does not.
    loopback = edited(tmp_path / "hosts.yml", hubs={"hub": {"streamer_http": "127.0.0.1:8080"}})
    done = play(source=source, inventory=loopback)
    assert done.status != 0
    assert on("hub", "ls /etc/streamer/wall* 2>/dev/null || true") == ""
    assert "RuntimeError: a release that is broken" in done.output, done.output
    assert re.search(r"pi1: .*runs again what it ran before", " ".join(done.output.split())), done.output
    assert {on(host, "readlink /opt/streamer/current") for host in CAMERAS} == {first}
    after = processes()
    assert [host for host in CAMERAS if after[host] != before[host]] == ["pi1"]
    deploy("--tags", "rollback", "--limit", "hub")  # where nothing is broken
    assert on("hub", "readlink /opt/streamer/current") == first
    all_live()


def test_new_release_and_the_way_back(tmp_path: Path) -> None:
    first = on("pi1", "readlink /opt/streamer/current")
    source = later_source(tmp_path, "99.0")
    lab.kill("pi6")
    with Gaps() as gaps:
        done = play(source=source)
    lab.start("pi6")
    assert done.status != 0
    print(f"gaps of the upgrade, in seconds: {gaps.of}")
    for name, seconds in gaps.of.items():
        # The hub's restart and the camera's own; a busy machine makes short ones besides.
        assert len([gap for gap in seconds if gap > 1]) <= 2, f"{name}: {seconds}"
        assert max(seconds) <= UPGRADE_GAP_S, f"{name}: {seconds}"
    assert "no answer from pi6; the others are done" in " ".join(done.output.split()), done.output
    reached = [host for host in HOSTS if host != "pi6"]
    assert all(on(host, "/opt/streamer/current/bin/streamer --version") == "streamer 99.0" for host in reached)
    deploy("--limit", "pi6", source=source)
    assert on("pi6", "/opt/streamer/current/bin/streamer --version") == "streamer 99.0"
    all_live()

    deploy("--tags", "rollback", "--limit", "pi3")
    assert on("pi3", "readlink /opt/streamer/current") == first
    assert on("pi4", "readlink /opt/streamer/current") != first
    all_live()

    deploy("--tags", "rollback", "--limit", "!pi3")
    assert {on(host, "readlink /opt/streamer/current") for host in HOSTS} == {first}
    all_live()

    nothing_left = play("--tags", "rollback", "--limit", "pi3")
    assert nothing_left.status != 0
    assert re.search(r"pi3.*no (earlier )?release", nothing_left.output), nothing_left.output
    assert on("pi3", "readlink /opt/streamer/current") == first
    all_live()


def test_hub_that_goes_to_other_ports_and_back_is_reached_there(tmp_path: Path) -> None:
    source = later_source(tmp_path, "99.1")
    ports = {"streamer_port": 5557, "streamer_http": "0.0.0.0:8081"}
    moved = edited(tmp_path / "hosts.yml", hubs={"hub": ports})
    # When the inventory is looked at, this is a good number still.
    later = "{{ 'soon' if node_found is defined else 30 }}"
    broken = edited(tmp_path / "broken.yml", hubs={"hub": ports}, cameras={"pi1": {"sender_watchdog_s": later}})
    before = processes()
    done = play("--limit", "hub,pi1", source=source, inventory=moved)
    told = f"hub: its port changes from 5555 to 5557, and {', '.join(CAMERAS[1:])} would not find it: deploy without"
    assert told in " ".join(done.output.split()), done.output
    assert processes() == before
    done = play(source=source, inventory=broken)
    assert re.search(r"pi1: .*runs again what it ran before", " ".join(done.output.split())), done.output
    on("hub", "systemctl restart streamer-firewall")  # as the next boot does
    assert [connect("hub", port) for port in (5557, 8081)] == ["done"] * 2, "although a camera has failed"
    deploy(source=source, inventory=moved)
    assert [connect("hub", port) for port in (5557, 8081)] == ["done"] * 2
    assert connect("hub", 5555) != "done"
    told = deploy("--check", "--tags", "rollback").output
    assert re.search(r"\[hub\].*\n.*99\.1\+\S+ -> \S+\.py\d+\n", told), told
    assert connect("hub", 8081) == "done", "it was only asked"
    deploy("--tags", "rollback")
    all_live()
    assert has_firewall("hub")
    on("hub", "systemctl restart streamer-firewall")  # as the next boot does
    assert [connect("hub", port) for port in (5555, 8080)] == ["done"] * 2


def test_hub_moves_to_another_host(tmp_path: Path) -> None:
    inventory = yaml.safe_load(INVENTORY.read_text())
    old, new = inventory["hubs"]["hosts"]["hub"], inventory["cameras"]["hosts"]["pi1"]
    moved = edited(
        tmp_path / "hosts.yml",
        without="hub",
        hubs={"pi1": {**new, "streamer_http": "0.0.0.0:8080"}},
        retired={"hub": old},
    )
    deploy(inventory=moved)
    lab.relay("pi1")
    assert sorted(table()) == CAMERAS
    all_live()
    assert on("hub", "systemctl is-active streamer-hub || true") == "inactive"
    assert on("hub", "ls /etc/streamer /opt/streamer/releases/*/ran | sed /:$/d | xargs") == "", "nor its password"
    assert not has_firewall("hub")
    assert connect("pi1", 8080) == "done", "through its firewall"

    deploy()
    lab.relay("hub")
    all_live()
    assert on("pi1", "systemctl is-active streamer-hub || true") == "inactive"


def test_lab_heals_what_crashed_and_leaves_nothing_behind() -> None:
    pattern = f"^systemd-nspawn .*--machine={NAME}-pi6 "
    nspawn = subprocess.run(["pgrep", "--full", pattern], capture_output=True, text=True, check=True)
    os.kill(int(nspawn.stdout.split()[0]), signal.SIGKILL)
    lab.up()
    assert on("pi6", "hostname") == "pi6", "the host has its disk still"
    all_live()

    lab.down()
    assert lab._namespaces() == []
    assert NAME not in Path("/proc/self/mountinfo").read_text()
    assert not lab.OWNER.exists()
    assert not lab.RUN.exists()
    assert Group().pids() == []
