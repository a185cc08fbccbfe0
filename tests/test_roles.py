"""The roles say what they take, the operator's files set only what there is, and the units are sound."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
import yaml
from jinja2 import Template

from streamer import cli
from streamer import config as streamer_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).parents[1]
ROLES = ["node", "streamer", "sender", "hub"]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
# What a unit may expose at most, on systemd's scale of 0 to 10, times ten.
EXPOSURE = 30
GROUP_VARS = list(ROOT.glob("group_vars/*.yml"))
VARIABLE = re.compile(r"(?:# )?(?:streamer|node|sender|hub)_[a-z_]+:(?: |$)")
INVENTORY_TOLD = (ROOT / "README.md").read_text().partition("\n## The inventory\n")[2].partition("\n## ")[0]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def manual_of(path: Path) -> dict[str, Any]:
    """A file of group_vars as it is with each # away from before a variable."""
    return dict(yaml.safe_load(re.sub(r"^# (?=[a-z_]+:( |$))", "", path.read_text(), flags=re.MULTILINE)))


@functools.cache
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


fleet = module(ROOT / "playbooks" / "filter_plugins" / "fleet.py")


def plan(groups: dict[str, list[str]], **hosts: dict[str, Any]) -> dict[str, Any]:
    defaults = {key: value for role in ROLES for key, value in defaults_of(role).items()}
    names = {name for group in groups.values() for name in group}
    hostvars = {
        name: {"ansible_host": f"192.0.2.{number}"} | hosts.get(name, {}) for number, name in enumerate(sorted(names))
    }
    return dict(fleet.fleet_plan(groups, hostvars, defaults))


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
        if re.match(VARIABLE, line):
            # A comment may explain a few variables that stand together.
            assert above.startswith("#") or re.match(VARIABLE, above), line
        above = line


def test_the_manual_has_every_variable_with_its_default() -> None:
    defaults = {name: value for role in ROLES for name, value in defaults_of(role).items()}
    told = {name: value for path in GROUP_VARS for name, value in manual_of(path).items()}
    assert told == {name: defaults[name] for name in told}
    of_one_host = {"streamer_address", "node_name", "hub_managed", "hub_key"}
    assert told.keys() | of_one_host | set(fleet.WORKED_OUT) >= defaults.keys()
    example = (ROOT / "inventory/hosts.yml").read_text()
    assert all(f"# {name}: " in example for name in of_one_host)
    for name in defaults.keys() - set(fleet.WORKED_OUT):
        assert f"`{name}`" in INVENTORY_TOLD, name


@pytest.mark.parametrize("path", GROUP_VARS, ids=str)
def test_group_vars_set_nothing_so_that_the_inventory_s_groups_may(path: Path) -> None:
    assert load(path) is None


def test_what_is_worked_out_is_given_by_the_plays() -> None:
    plays = "".join(path.read_text() for path in (ROOT / "playbooks").glob("*.yml"))
    for name in fleet.WORKED_OUT:
        assert f"            {name}: " in plays


def test_the_example_inventory_sees_group_vars() -> None:
    # Without the link, playbooks/ would silently run without what operators set.
    assert (ROOT / "inventory" / "group_vars").resolve() == ROOT / "group_vars"


def test_every_tag_of_the_plays_is_known() -> None:
    plays = [play for path in ROOT.glob("playbooks/*.yml") for play in load(path)]
    tags = {tag for play in plays for tag in re.findall(r"\w+", str(play.get("tags", "")))}
    assert tags == {*fleet.TAGS, "always", "never"}
    assert fleet.tag_problems([*fleet.TAGS, *fleet.ANSIBLES_TAGS], ["verify", *fleet.ANSIBLES_TAGS]) == []


def test_a_camera_sends_to_the_first_hub() -> None:
    hosts = plan({"cameras": ["pi1", "pi2"], "hubs": ["left", "right"]}, left={"streamer_port": 6000})["hosts"]
    assert hosts["pi1"]["sender"]["hubs"] == ["tcp://192.0.2.0:6000"]
    assert hosts["left"]["hub_config"]["cameras"] == ["pi1", "pi2"]
    assert hosts["right"]["hub_config"]["cameras"] == []


def test_a_camera_s_options_are_keys_of_its_configuration() -> None:
    keys = {field.name for field in dataclasses.fields(streamer_config.SenderConfig)}
    said = {*fleet.SENDER.values, *fleet.SENDER.said}
    assert said <= keys
    made = plan(FLEET)["hosts"]["pi1"]["sender"]
    assert {*made, "publish"} == said
    door = {"streamer_camera": "usb:/dev/v4l/by-id/door", "sender_options": {"in_flight_limit": 4}}
    manual = yaml.safe_load(streamer_config.manual(streamer_config.SenderConfig))
    for variables in (door, {"sender_options": {key: manual[key] for key in keys - said}}):
        assert plan(FLEET, pi1=variables)["problems"] == []


def test_a_hub_s_options_are_keys_of_its_configuration() -> None:
    keys = {field.name for field in dataclasses.fields(streamer_config.HubConfig)}
    said = {*fleet.HUB.values, *fleet.HUB.said}
    options = load(ROOT / "roles/hub/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert set(options["hub_config"]["options"]) == said <= keys
    manual = yaml.safe_load(streamer_config.manual(streamer_config.HubConfig))
    assert plan(FLEET, hub={"hub_options": {key: manual[key] for key in keys - said}})["problems"] == []


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


KEY, OTHER = (f"curve-public:{digit * 64}" for digit in "ab")
UNMANAGED = {"hub_managed": False, "hub_key": KEY}


def test_hubs_and_cameras_encrypt_unless_the_hub_says_no() -> None:
    hosts = plan(FLEET)["hosts"]
    assert (hosts["hub"]["key_users"], hosts["pi1"]["key_users"]) == ({"hub": "streamer"}, {"sender": "streamer"})
    plain = plan(FLEET, hub={"streamer_curve": False})
    assert (plain["hosts"]["hub"]["key_users"], plain["hosts"]["pi1"]["key_users"], plain["allowed"]) == ({}, {}, {})
    for word in ("on", "Yes", "y", "t", "TRUE", "1", 1, True):
        assert plan(FLEET, hub={"streamer_curve": word})["allowed"] == {"hub": ["pi1"]}, word
    for word in ("off", "No", "n", "f", "FALSE", "0", 0, False):
        assert plan(FLEET, hub={"streamer_curve": word})["allowed"] == {}, word
    screen = plan(FLEET, hub={"streamer_display": "windows", "hub_display_user": "anna"})
    assert screen["hosts"]["hub"]["key_users"] == {"hub": "anna"}


def test_a_key_stays_with_who_reads_it_until_the_host_is_switched(tmp_path: Path) -> None:
    variables = load(ROOT / "roles/streamer/vars/main.yml") | {"streamer_keys": {"hub": "anna", "sender": "streamer"}}
    cases: list[tuple[dict[str, str], list[str], list[str]]] = [
        ({}, ["hub", "sender"], ["hub", "sender"]),
        ({"hub.key": f"{KEY} 600 anna", "sender.key": f"{KEY} 644 streamer"}, ["sender"], ["sender"]),
        ({"hub.key": f"{KEY} 600 streamer", "sender.key": " 600 streamer"}, ["sender"], ["hub", "sender"]),
        ({"hub.key": f"{KEY} 600 anna", "sender.key": f"{KEY} 600 streamer"}, [], []),
    ]
    told = evaluated(
        tmp_path,
        "[_streamer_keys_lacking | sort, _streamer_keys_due | sort]",
        [variables | {"node_found": found} for found, _, _ in cases],
    )
    assert told == [[lacking, due] for _, lacking, due in cases]
    (prepared,), (given, *_) = (load(ROOT / f"roles/streamer/tasks/{name}.yml") for name in ("prepare", "main"))
    assert prepared["vars"]["_streamer_keys"] == "{{ _streamer_keys_lacking }}"
    assert given["vars"]["_streamer_keys"] == "{{ _streamer_keys_due }}"


def test_every_camera_may_send_to_each_hub_that_it_names() -> None:
    groups = {"cameras": ["pi1", "pi2"], "hubs": ["left", "right"]}
    made = plan(groups, pi2={"streamer_hub": ["right", "left"]})
    assert made["allowed"] == {"left": ["pi1", "pi2"], "right": ["pi2"]}
    sender = fleet.sender_with_keys(made["hosts"]["pi2"]["sender"], {"left": KEY, "right": OTHER}, "")
    assert sender["curve_hub_keys"] == [OTHER, KEY]


def test_camera_goes_by_what_it_knew_of_a_hub_that_is_away() -> None:
    groups = {"cameras": ["pi1"], "hubs": ["left", "right"]}
    sender = plan(groups, pi1={"streamer_hub": ["left", "right"]})["hosts"]["pi1"]["sender"]
    left, right = sender["hubs"]
    cases: list[tuple[dict[str, str], str, list[str], list[str]]] = [
        ({"left": KEY, "right": OTHER}, f"{left} {right} {OTHER} {KEY}", [left, right], [KEY, OTHER]),
        ({"left": KEY}, f"{left} {right} {OTHER} {OTHER}", [left, right], [KEY, OTHER]),
        ({"left": KEY}, f"{left} {KEY}", [left], [KEY]),
        ({"left": KEY}, f"{left} {right}", [left], [KEY]),
        ({"left": KEY}, "", [left], [KEY]),
        ({"left": "", "right": OTHER}, "", [left, right], ["", OTHER]),
    ]
    for known, knew, hubs, keys in cases:
        assert fleet.sender_with_keys(sender, known, knew) == {**sender, "hubs": hubs, "curve_hub_keys": keys}


def test_a_hub_goes_to_another_port_only_with_all_cameras_that_send_there(tmp_path: Path) -> None:
    groups = {"cameras": ["pi1", "pi2", "pi3"], "hubs": ["left", "right"]}
    variables: dict[str, Any] = {"pi2": {"streamer_hub": ["right", "left"]}, "pi3": {"streamer_hub": "right"}}
    assert survey(tmp_path)["hub_port"] == ""
    (tmp_path / "etc/streamer").mkdir(parents=True)
    for curve in (True, False):
        left = {"streamer_port": 6000, "streamer_curve": curve}
        made = plan(groups, left=left, right={"streamer_curve": curve}, **variables)
        # As Ansible's to_nice_yaml writes it.
        (tmp_path / "etc/streamer/hub.yml").write_text(yaml.safe_dump(made["hosts"]["right"]["hub_config"]))
        found = [("left", survey(tmp_path)), ("right", survey(tmp_path))]
        for names, told in (
            (["left", "right"], ["left: its port changes from 5555 to 6000, and pi1, pi2 would not find it"]),
            (["left", "pi2"], ["left: its port changes from 5555 to 6000, and pi1 would not find it"]),
            (["left", "pi1", "pi2"], []),
        ):
            assert fleet.move_problems(found, made, names) == told
    assert fleet.move_problems([("left", {"hub_port": ""})], made, ["left"]) == [], "nobody finds a new one yet"


def test_list_of_who_may_send_follows_from_the_inventory_and_from_what_the_hub_knows() -> None:
    none = fleet.allowed_keys("", [], {})
    assert none == "# Written by Ansible from the inventory: who may send. Deploy to change it.\n"
    one = fleet.allowed_keys(none, ["pi1"], {"pi1": KEY})
    assert one == f"{none}pi1 {KEY}\n"
    assert fleet.allowed_keys(one, ["pi1", "pi2"], {"pi2": OTHER}) == f"{one}pi2 {OTHER}\n", "one is added"
    assert fleet.allowed_keys(one, ["pi1"], {"pi1": OTHER}) == f"{none}pi1 {OTHER}\n", "a new card"
    assert fleet.allowed_keys(one, ["pi2"], {"pi2": OTHER}) == f"{none}pi2 {OTHER}\n", "one is revoked"
    assert fleet.allowed_keys(f"{KEY}\n{one}") == fleet.allowed_keys(one) == one, "nothing is known of others"


def test_a_camera_whose_key_is_none_or_another_s_is_named_before_a_hub_cannot_read_its_list() -> None:
    allowed = {"hub": ["pi1", "pi2", "pi3"]}
    knows = [{"item": "hub", "stdout": f"{OTHER}\n{fleet.allowed_keys('', ['pi1'], {'pi1': KEY})}"}]
    found = [("pi2", {"sender.key": f"{OTHER} 600 streamer"}), ("pi3", {}), ("hub", {"sender.key": ""})]
    assert fleet.key_problems(fleet.sender_keys(found), knows, allowed) == []
    copied = fleet.sender_keys([("pi2", {"sender.key": f"{KEY} 600 streamer"})])
    assert fleet.key_problems(copied, knows, allowed) == ["pi1 and pi2 have one key, as after a card was copied"]
    assert fleet.key_problems({"pi1": OTHER, **copied}, knows, allowed) == [], "pi1 has a new one"
    assert fleet.key_problems({"pi1": KEY, **copied}, [], allowed) == fleet.key_problems(copied, knows, allowed)
    assert fleet.key_problems({"pi9": "", **copied}, [], allowed) == [], "pi9 sends to no hub that encrypts"
    for said in ("", "rubbish", f"{KEY}\npi3", "\x1b[31m"):
        fresh = fleet.sender_keys([("pi2", {"sender.key": f"{said} 600 streamer"})])
        assert fleet.key_problems(fresh, [], allowed) == ["pi2: what it shows as its public key is not one"]


def test_lock_is_kept_where_all_operators_look() -> None:
    groups = {"cameras": ["pi1", "pi2"], "hubs": ["desk", "hub"]}
    assert plan(groups)["lock_at"] == "desk"
    assert plan(groups, desk=UNMANAGED)["lock_at"] == "hub"
    assert plan({"cameras": ["pi1", "pi2"], "hubs": ["desk"]}, desk=UNMANAGED)["lock_at"] == "pi1"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"sender_options": {"publish": "tcp://*:5555"}}, "sender_options has publish: streamer_hub says that"),
        ({"sender_options": {"hflip": "yes"}}, "sender_options: hflip is 'yes': it must be true or false"),
        ({"streamer_camera": "file:a.mp4"}, "streamer_camera is 'file:a.mp4': it must be the file's absolute path"),
        ({"streamer_hub": [["hub"]]}, "streamer_hub is [['hub']]: it must be the name of a hub, or a list of names"),
        ({"sender_watchdog_s": "5 min"}, "sender_watchdog_s is '5 min': it must be a number from 15 to 3600, as in 30"),
        ({"streamer_releases_kept": "many"}, "streamer_releases_kept is 'many': it must be a number from 2 to 100"),
        ({"node_packages": ["vim"]}, "node_packages is worked out by the deploy: take it out"),
        ({"node_journal_max": "all"}, "node_journal_max is 'all': it must be a size, as in 200M"),
        ({"node_name": "my nas"}, "node_name is 'my nas': it must be 1 to 63 of a-z, 0-9, inner '-'"),
        ({"ansible_host": "192.0.2.333"}, "ansible_host is '192.0.2.333': it must be an IP address or a host's name"),
    ],
)
def test_a_camera_s_variable_is_refused(variables: dict[str, Any], said: str) -> None:
    (problem,) = plan(FLEET, pi1=variables)["problems"]
    assert problem.startswith(f"pi1: {said}")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"streamer_http": "999.1.1.1:8080"}, "streamer_http is '999.1.1.1:8080': it must be ADDRESS:PORT of this"),
        ({"streamer_http": "0.0.0.0:80"}, "streamer_http has port 80, which needs root: it must be from 1024 to 65535"),
        ({"streamer_address": "hub lan"}, "streamer_address is 'hub lan': it must be an IP address or a host's name"),
        ({"hub_options": {"zoom": 2}}, "hub_options has zoom, which no hub takes: there are: plain_bind, subscribe, "),
        ({"hub_options": {"bind": "tcp://*:6000"}}, "hub_options has bind: streamer_port says that"),
        ({"hub_options": {"layout": 8}}, "hub_options: layout is 8: it must be ROWSxCOLUMNS"),
        ({"hub_options": {"gone_after_s": 2}}, "hub_options: gone_after_s is 2: it must be greater than stale_after_s"),
        (
            {"hub_options": {"plain_bind": "tcp://*:5555"}},
            "streamer_port and hub_options: plain_bind both take port 5555: give each its own",
        ),
    ],
)
def test_a_hub_s_variable_is_refused(variables: dict[str, Any], said: str) -> None:
    (problem,) = plan(FLEET, hub=variables)["problems"]
    assert problem.startswith(f"hub: {said}")


def test_what_is_true_or_false_is_looked_at_whatever_it_is_called() -> None:
    defaults = {name: value for role in ROLES for name, value in defaults_of(role).items()}
    for name in (name for name, value in defaults.items() if isinstance(value, bool)):
        for value in ("", "maybe", "tru", None, 2, [True]):
            assert f"hub: {name} is {value!r}: it must be true or false" in plan(FLEET, hub={name: value})["problems"]


def test_only_what_is_like_a_variable_of_ours_is_taken_for_one() -> None:
    others = {"node_exporter_version": "1.9", "node_type": "arm", "hub_name": "a", "sender_email": "a@b", "nodes": 1}
    assert plan(FLEET, hub=others)["problems"] == []
    for name in ("hub_option", "hub_dispay_user", "node_journl_persistant", "node_firwal_port", "streamer_zoom"):
        (problem,) = plan(FLEET, hub={name: 1})["problems"]
        assert problem.startswith(f"hub: no variable is called {name}: did you mean ")


@pytest.mark.parametrize(
    ("group", "meant"),
    [("camera", "cameras"), ("CAMERA", "cameras"), ("camreas", "cameras"), ("hub", "hubs"), ("retire", "retired")]
    + [(group, "") for group in ("ip_cameras", "webcams", "pubs", "front_door", "ungrouped", "all")],
)
def test_only_a_group_that_is_called_almost_as_ours_is_taken_for_one(group: str, meant: str) -> None:
    told = [f"nas: in none of the fleet's groups, but in {group}: did you mean {meant}?"] if meant else []
    assert plan({**FLEET, group: ["nas"]})["problems"] == told
    assert plan({**FLEET, group: FLEET["cameras"]})["problems"] == []


def test_no_host_but_a_hub_can_be_one_that_ansible_does_not_manage() -> None:
    plain = {"hub_managed": False, "streamer_curve": False}
    made = plan(FLEET, hub=plain, pi1=plain)
    assert (made["lock_at"], made["hosts"]["pi1"]["units"]) == ("pi1", ["streamer-sender"])
    (problem,) = plan({"cameras": ["localhost"], "hubs": ["hub"]}, localhost=plain)["problems"]
    assert problem.startswith("localhost: every machine calls itself so")


def test_options_of_a_hub_that_ansible_does_not_manage_are_refused() -> None:
    hub = {**UNMANAGED, "hub_options": {"plain_bind": "tcp://*:5556"}}
    assert plan(FLEET, hub={**hub, "streamer_address": "192.0.2.9"})["problems"] == [
        "hub: hub_options is for a hub that Ansible manages: leave it empty, and give this hub its own hub.yml with "
        "these keys"
    ]


def test_a_certificate_that_the_operator_cannot_read_is_told() -> None:
    who = os.geteuid()
    plan(FLEET)  # reads what a clone in root's own home lets nobody else read
    # Not in tmp_path, which root keeps to itself.
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "live").mkdir()
        certificate, key, hidden = place / "cert.pem", place / "key.pem", place / "live" / "key.pem"
        for path, mode in ((certificate, 0o644), (key, 0), (hidden, 0o644), (place / "live", 0), (place, 0o755)):
            path.touch()
            path.chmod(mode)
        for path, why in ((key, "Permission denied"), (hidden, "Permission denied"), (place, "Is a directory")):
            if who == 0:  # who may read everything
                os.seteuid(65534)
            try:
                tls = {"hub_tls_certificate": str(certificate), "hub_tls_key": str(path)}
                problems = plan(FLEET, hub=tls)["problems"]
            finally:
                os.seteuid(who)
            assert problems == [
                f"hub: hub_tls_key is '{path}': who deploys must be able to read that file on this machine: {why}"
            ]
        (place / "live").chmod(0o700)


def test_a_hub_that_ansible_does_not_manage_gets_a_command() -> None:
    made = plan({"cameras": ["pi1"], "hubs": ["desk"]}, desk={**UNMANAGED, "streamer_display": "windows"})
    assert made["hubs"] == {}
    assert made["hosts"]["desk"]["units"] == []
    assert made["commands"] == {
        "desk": 'streamer hub --bind "tcp://*:5555" --http "127.0.0.1:8080" --display "windows" '
        '--key "hub.key" --allowed "allowed_keys"'
    }
    assert made["hub_keys"] == {"desk": KEY}


NETWORK = {"streamer_http": "0.0.0.0:8080"}
FLEET = {"cameras": ["pi1"], "hubs": ["hub"]}


@pytest.mark.parametrize(
    ("hub", "keys"),
    [
        ({}, {}),
        ({"streamer_http": "[::1]:8080"}, {}),
        ({"streamer_http_open": True}, {}),
        (NETWORK, {"http_password_file": "/etc/streamer/wall_password"}),
        ({"streamer_http": "192.0.2.0:8080"}, {"http_password_file": "/etc/streamer/wall_password"}),
        ({**NETWORK, "streamer_http_open": "false"}, {"http_password_file": "/etc/streamer/wall_password"}),
        ({**NETWORK, "streamer_http_open": True}, {"http_open": True}),
    ],
)
def test_a_hub_on_the_network_asks_unless_it_is_open(hub: dict[str, Any], keys: dict[str, Any]) -> None:
    made = plan(FLEET, hub=hub)
    config = made["hosts"]["hub"]["hub_config"]
    assert {key: config[key] for key in ("http_password_file", "http_open") if key in config} == keys
    assert made["asks"] == made["hubs"]["hub"]["asks"] == ("http_password_file" in keys)
    assert config["http_socket"] == "/run/streamer/hub.sock"
    assert made["hubs"]["hub"]["url"] == "unix:/run/streamer/hub.sock"


def test_a_hub_s_keys_are_those_of_its_configuration(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("")
    tls = {"hub_tls_certificate": str(tmp_path / "cert.pem"), "hub_tls_key": str(tmp_path / "key.pem")}
    for access in ({}, {"streamer_http_open": True}):
        config = plan(FLEET, hub={**NETWORK, **tls, **access})["hosts"]["hub"]["hub_config"]
        file = tmp_path / "hub.yml"
        file.write_text(yaml.safe_dump(config))
        loaded = streamer_config.load(streamer_config.HubConfig, file, {})
        assert str(loaded.tls_certificate) == "/etc/streamer/wall.crt"
        options = load(ROOT / "roles/hub/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
        assert set(config) <= set(options["hub_config"]["options"])


@pytest.mark.parametrize(
    ("hub", "flags", "page"),
    [
        (NETWORK, ' --password-file "wall_password"', "http://192.0.2.0:8080/ asks for the password in {password}, of"),
        ({**NETWORK, "streamer_http_open": True}, " --open", "http://192.0.2.0:8080/ shows every camera to whoever"),
        ({}, "", "http://127.0.0.1:8080/ on itself; from here: ssh -L 8080:127.0.0.1:8080 192.0.2.0"),
        (
            {"ansible_host": "192.0.2.7", "ansible_user": "pi", "ansible_port": 2222, "streamer_address": "192.0.2.8"},
            "",
            "http://127.0.0.1:8080/ on itself; from here: ssh -L 8080:127.0.0.1:8080 -p 2222 pi@192.0.2.7",
        ),
        ({"ansible_connection": "local", "ansible_host": "192.0.2.7"}, "", "http://127.0.0.1:8080/ on this machine"),
    ],
)
def test_a_hub_that_ansible_does_not_manage_is_told_who_may_look(hub: dict[str, Any], flags: str, page: str) -> None:
    made = plan(FLEET, hub={**UNMANAGED, **hub})
    assert made["commands"]["hub"].endswith(f'--allowed "allowed_keys"{flags}')
    words = shlex.split(made["commands"]["hub"])
    options = vars(cli._parser().parse_args(words[1:]))
    given = {key: options[key] for key in ("bind", "http", "display", "http_open")}
    config = streamer_config.load(
        streamer_config.HubConfig, None, given | {"http_password_file": options["http_password_file"]}
    )
    assert str(config.http) == hub.get("streamer_http", "127.0.0.1:8080")
    assert made["pages"][0].startswith(f"hub: {page}")
    assert made["asks"] == ("password" in flags)


def test_the_page_is_told_by_the_address_that_others_use(tmp_path: Path) -> None:
    pem = tmp_path / "a.pem"
    pem.write_text("")
    tls = {"hub_tls_certificate": str(pem), "hub_tls_key": str(pem)}
    for variables, page in (
        ({"streamer_http": "[::]:8443", "streamer_address": "fd00::1", **tls}, "https://[fd00::1]:8443/ asks for"),
        ({"streamer_http": "192.0.2.77:8080"}, "http://192.0.2.77:8080/ asks for the password in {password}"),
    ):
        assert plan(FLEET, hub=variables)["pages"][0].startswith(f"hub: {page}")


def test_a_firewall_opens_what_the_hub_serves_to_others() -> None:
    def ports(hub: dict[str, Any]) -> list[int]:
        made = plan(FLEET, hub={"node_firewall": "yes", **hub})["hosts"]["hub"]
        assert made["firewall"]
        assert "nftables" in made["packages"]
        return list(made["ports"])

    plain = {"hub_options": {"plain_bind": "tcp://*:5556"}}
    assert ports({}) == [5555], "the page is on loopback"
    assert ports({**NETWORK, **plain, "node_firewall_ports": [9100, 5555]}) == [5555, 5556, 8080, 9100]
    assert ports({"streamer_port": 6000, "streamer_http": "[::]:8443"}) == [6000, 8443]
    assert ports({"hub_options": {"plain_bind": "tcp://127.0.0.1:7000"}}) == [5555]
    assert ports({"streamer_http": "[::1]:8080", "hub_options": {"plain_bind": None}}) == [5555]
    cameras = plan(FLEET, pi1={"node_firewall": True, "node_firewall_ports": ["9100"]})["hosts"]
    assert cameras["pi1"]["ports"] == [9100]
    assert not cameras["hub"]["firewall"]
    assert "nftables" not in cameras["hub"]["packages"]
    desk = plan(FLEET, hub={**UNMANAGED, "node_firewall": True})["hosts"]["hub"]
    assert not desk["firewall"], "Ansible does not touch it"
    old = plan({**FLEET, "retired": ["old"]}, old={"node_firewall": True})["hosts"]["old"]
    assert not old["firewall"], "it is taken down with the rest"


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
    for litter in (".DS_Store", ".new.py.swp", "new.py~", "new.pyc"):
        (checkout / "streamer" / litter).write_text("")
    assert not build(checkout)["built"]
    (checkout / "streamer" / "new.py").write_text("")
    assert build(checkout)["release"] != first["release"]


def test_a_wheel_that_cannot_be_written_is_told_in_a_line(checkout: Path) -> None:
    (checkout / "build").write_text("no directory")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        build(checkout)
    assert re.fullmatch(r"cannot build the wheel: .*Not a directory: '.*/build/releases/.*'\n", caught.value.stderr)


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


def write_units(directory: Path, systemd: str = "252") -> dict[str, Path]:
    """Let Ansible write each unit, for a host with that systemd."""
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
    play = {"hosts": "localhost", "gather_facts": False, "tasks": tasks, "vars": {"node_found": {"systemd": systemd}}}
    (directory / "play.yml").write_text(yaml.safe_dump([play]))
    subprocess.run([PLAYBOOK, directory / "play.yml"], check=True, cwd=directory, capture_output=True)
    return {name: next((directory / str(number)).iterdir()) for number, name in enumerate(UNITS)}


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each unit, but for the program, which is not installed here."""
    paths = write_units(tmp_path_factory.mktemp("units"))
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


# -- the wall's password, certificate and key


def test_the_survey_finds_a_secret_as_the_role_leaves_it(tmp_path: Path) -> None:
    survey = (ROOT / "roles/node/files/survey.sh").read_text()
    program = re.search(r"^digest='(.+)'$", survey, re.MULTILINE)
    assert program is not None
    secret = tmp_path / "wall_password"
    secret.write_text("correct horse\n")
    command = [sys.executable, "-c", program[1]]
    found = subprocess.run(command, input=secret.read_bytes(), check=True, capture_output=True).stdout.decode().strip()
    placed = module(ROOT / "roles/hub/filter_plugins/secret.py").as_placed(
        {"wall_password": str(secret), "wall.crt": "", "wall.key": str(tmp_path / "nothing")}
    )
    assert placed == {"wall_password": f"{found} 640 root streamer", "wall.key": " 640 root streamer"}
    files = load(ROOT / "roles/hub/vars/main.yml")["_hub_files"]
    assert f"for file in {' '.join(files)}; do" in survey
    assert {f"/etc/streamer/{file}" for file in files} <= set(
        load(ROOT / "roles/streamer/vars/main.yml")["_streamer_files"]["streamer-hub"]
    )


def test_a_digest_that_is_slow_is_made_once_in_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_placed = module(ROOT / "roles/hub/filter_plugins/secret.py").as_placed
    monkeypatch.setattr(hashlib, "scrypt", scrypt := Mock(wraps=hashlib.scrypt))
    (tmp_path / "wall_password").write_text("correct horse\n")
    files = {"wall_password": str(tmp_path / "wall_password")}
    assert as_placed(files) == as_placed(files)
    assert scrypt.call_count == 1


def test_a_secret_that_ansible_vault_has_encrypted_is_found_by_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vault").write_text("of the vault")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(tmp_path / "vault"))
    for name in ("plain", "encrypted"):
        (tmp_path / name).write_text("correct horse\n")
    vault = PLAYBOOK.with_name("ansible-vault")
    subprocess.run([vault, "encrypt", tmp_path / "encrypted"], check=True, capture_output=True)
    assert (tmp_path / "encrypted").read_text().startswith("$ANSIBLE_VAULT")
    sources = [{"files": {"wall_password": str(tmp_path / name)}} for name in ("plain", "encrypted")]
    plain, encrypted = evaluated(tmp_path, "files | as_placed", sources)
    assert plain == encrypted


def test_what_differs_on_a_hub_is_brought_or_removed(tmp_path: Path) -> None:
    for name in ("password", "cert", "key"):
        (tmp_path / name).write_text(name)
    variables = load(ROOT / "roles/hub/vars/main.yml")
    placed = module(ROOT / "roles/hub/filter_plugins/secret.py").as_placed
    has = placed({"wall_password": str(tmp_path / "password"), "wall.crt": str(tmp_path / "cert")})
    cases: list[tuple[dict[str, Any], list[str], list[str]]] = [
        ({}, ["wall.crt", "wall.key", "wall_password"], []),
        (has, ["wall.key"], []),
        (has | {"wall_password": has["wall_password"].replace("640", "644")}, ["wall.key", "wall_password"], []),
        (has | {"wall_password": ""}, ["wall.key", "wall_password"], []),
        (has | {"none": True}, [], ["wall.crt", "wall_password"]),
    ]
    variables_of = []
    for found, _, _ in cases:
        wanted = {} if found.get("none") else {name: str(tmp_path / name) for name in ("password", "cert", "key")}
        hub = {
            "hub_password_file": wanted.get("password", ""),
            "hub_tls_certificate": wanted.get("cert", ""),
            "hub_tls_key": wanted.get("key", ""),
            "node_found": {"units": "", "switched": False} | found,
        }
        variables_of.append(variables | hub)
    told = evaluated(tmp_path, "[_hub_files_due, _hub_files_surplus]", variables_of)
    assert [(due, surplus) for due, surplus in told] == [case[1:] for case in cases]


def evaluated(directory: Path, expression: str, variables_of: list[dict[str, Any]]) -> list[Any]:
    """Let Ansible evaluate an expression with each of these variables."""
    said = f"VALUE {{{{ ({expression}) | to_json }}}} END"
    tasks = [{"ansible.builtin.debug": {"msg": said}, "vars": variables} for variables in variables_of]
    play = {"hosts": "localhost", "gather_facts": False, "tasks": tasks}
    (directory / "play.yml").write_text(yaml.safe_dump([play]))
    plugins = f"{ROOT}/roles/hub/filter_plugins:{ROOT}/playbooks/filter_plugins"
    environment = {**os.environ, "ANSIBLE_FILTER_PLUGINS": plugins, "COLUMNS": "300"}
    done = subprocess.run(
        [PLAYBOOK, "play.yml"], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return [json.loads(value) for value in re.findall(r"VALUE (.*?) END", done.stdout.replace("\\", ""))]


def test_a_rollback_goes_only_where_the_settings_are_kept_too(tmp_path: Path) -> None:
    streamer = load(ROOT / "roles/streamer/vars/main.yml")
    all_three = "1.py311 2.py311 3.py311"
    found = {"python": "py311", "current": "3.py311", "history": all_three, "complete": all_three}
    with_settings = [all_three, "1.py311 3.py311", "3.py311", ""]
    told = evaluated(
        tmp_path, "_streamer_back", [streamer | {"node_found": found | {"ran": ran}} for ran in with_settings]
    )
    assert told == ["2.py311", "1.py311", "", ""]


@pytest.mark.parametrize("file", ["roles/streamer/tasks/failed.yml", "playbooks/tasks/missing.yml"])
def test_a_journal_is_told_without_what_a_terminal_obeys(tmp_path: Path, file: str) -> None:
    said = load(ROOT / file)[-1]["ansible.builtin.fail"]["msg"]
    journal = {"stdout": "it's \xe4 day\x1b[2J\x9b31m\nand\rthe end\x07"}
    variables = {"said": said, "inventory_hostname": "pi1", "journal": journal, "_streamer_journal": journal}
    variables |= {"streamer_units": ["streamer-hub"], "streamer_state": "started", "streamer_why": "it failed"}
    variables |= {"plan": {"hub": "hub"}, "answer": {"stderr": ""}, "state": "GONE"}
    variables |= {"told": ["it's \xe4 day?[2J?31m", "and?the end?"]}
    assert evaluated(tmp_path, "said.splitlines()[-2:] == told", [variables]) == [True]


def test_a_camera_whose_hub_has_no_release_is_told_so(tmp_path: Path) -> None:
    said = load(ROOT / "playbooks/tasks/missing.yml")[-1]["ansible.builtin.fail"]["msg"]
    variables: dict[str, Any] = {"said": said, "inventory_hostname": "pi1"}
    variables |= {
        "plan": {"hub": "hub"},
        "answer": {"stderr": "", "rc": 2},
        "state": "unknown",
        "journal": {"stdout": ""},
    }
    told = "pi1 is unknown at hub, not LIVE. hub has no release: deploy without --limit"
    assert evaluated(tmp_path, "said.splitlines()[0]", [variables]) == [told]


def test_what_an_ini_inventory_gives_as_text_is_understood(tmp_path: Path) -> None:
    values = (False, "false", "no", "off", True, "true", "on")
    node = load(ROOT / "roles/node/vars/main.yml") | {"node_journal_max": "200M"}
    told = evaluated(
        tmp_path, "_node_journal_wanted != ''", [node | {"node_journal_persistent": value} for value in values]
    )
    assert told == [False, False, False, False, True, True, True]
    found = {"python": "py311", "current": "5.py311", "history": "1.py311 2.py311 3.py311 4.py311 5.py311"}
    streamer = load(ROOT / "roles/streamer/vars/main.yml") | {"streamer_release": "6", "node_found": found}
    told = evaluated(tmp_path, "_streamer_history", [streamer | {"streamer_releases_kept": kept} for kept in (4, "4")])
    assert told == [["3.py311", "4.py311", "5.py311", "6.py311"]] * 2


def test_what_plays_give_to_roles_is_not_called_as_what_operators_set() -> None:
    # What comes by -e is stronger than the variables of an include, and has not been read as the inventory is.
    operators = {name for path in GROUP_VARS for name in manual_of(path)}

    def given(tasks: list[dict[str, Any]]) -> Iterator[str]:
        for task in tasks:
            if "ansible.builtin.include_role" in task:
                yield from task.get("vars", {})
            yield from given(task.get("block", []) + task.get("rescue", []))

    for path in ROOT.glob("playbooks/*.yml"):
        for play in load(path):
            assert operators.isdisjoint(given(play.get("tasks", []))), path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project whose hosts cannot be reached, so that a deploy ends after what it does here."""
    copy = tmp_path_factory.mktemp("project") / "project"
    kept = ("ansible.cfg", "deploy.yml", "group_vars", "inventory", "playbooks", "roles", "streamer", "pyproject.toml")
    for name in (*kept, "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, copy)
    return copy


REACHED = "TASK [node : Look at the host]"


def deploy(project: Path, *arguments: str, password: str = ":", **hub: Any) -> str:
    """Deploy to hosts that are silent, but for the hub where it is asked for the password, which runs that command."""
    silent = project / "silent"
    silent.write_text(f"""#!/bin/sh
case "$*" in *"cat /etc/streamer/wall_password"*) {password}; exit;; esac
exit 255
""")
    silent.chmod(0o755)
    hosts = {
        "all": {"vars": {"ansible_ssh_executable": str(silent), "ansible_become": False}},
        "cameras": {"hosts": {"pi1": {"ansible_host": "192.0.2.1"}}},
        "hubs": {"hosts": {"hub": {"ansible_host": "192.0.2.9", **hub}}},
    }
    (project / "hosts.yml").write_text(yaml.safe_dump(hosts))
    command = [str(PLAYBOOK), "-i", "hosts.yml", "deploy.yml", "-vvv", "--diff", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_the_password_is_made_once_where_it_is_needed_and_told_nowhere(project: Path) -> None:
    file = project / "secrets" / "wall_password"
    for arguments, hub in ((["--check"], NETWORK), ([], {}), ([], {**NETWORK, "streamer_http_open": True})):
        output = deploy(project, *arguments, **hub)
        assert REACHED in output, output
        assert not file.exists()
    output = deploy(project, **NETWORK)
    assert REACHED in output, output
    made = file.read_text()
    assert re.fullmatch(r"[A-Za-z0-9]{20}\n", made)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert made.strip() not in output
    deploy(project, **NETWORK)
    assert file.read_text() == made

    for arguments, content, problem in (
        ([], b"short\nwritten by anna\n", "the first line has 5 characters: it must be a password of 8"),
        (["--check"], b"\nthe password is below\n", "the first line is empty: it must be a password of 8"),
        ([], "geheimnißvoll\n".encode("latin-1"), "is not UTF-8 text: its first line must be the password"),
    ):
        file.write_bytes(content)
        output = deploy(project, *arguments, **NETWORK)
        assert f"{file}: {problem}" in re.sub(r"\s+", " ", output), output
        assert REACHED not in output
        assert file.read_bytes() == content
    file.unlink()


def test_a_second_control_machine_takes_the_password_of_the_hub(project: Path) -> None:
    file = project / "secrets" / "wall_password"
    had = "printf 'the password of anna\\nand her note'"

    def is_taken(*arguments: str, password: str = had, **hub: Any) -> bool:
        output = deploy(project, *arguments, password=password, **NETWORK, **hub)
        assert REACHED in output, output
        assert "of anna" not in output
        return f"{file}: this machine had none, so it gets that of hub" in re.sub(r"\s+", " ", output)

    assert is_taken("--check")
    assert not file.exists()
    assert not is_taken(password="exit 255")
    assert not file.exists(), "who knows whether a hub that is silent has one?"
    assert is_taken("--limit=pi1")
    assert file.read_text() == "the password of anna\nand her note"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not is_taken(password="echo another of hers")
    assert file.read_text().startswith("the password of anna\n"), "what this machine has is what is deployed"
    file.unlink()
    assert not is_taken(hub_managed=False, hub_key=KEY)
    assert re.fullmatch(r"[A-Za-z0-9]{20}\n", file.read_text()), "Ansible must not ask that hub"
    file.unlink()


def test_a_wheel_that_cannot_be_built_is_told_by_the_build_alone(project: Path) -> None:
    module = project / "streamer/__init__.py"
    whole = module.read_text()
    module.write_text("")
    try:
        output = deploy(project)
    finally:
        module.write_text(whole)
    assert REACHED not in output
    assert f"{module}: has no line __version__" in re.sub(r"\s+", " ", output)
    assert not re.search(r"changed_when\b", output), output


def test_lock_is_a_lease_of_those_hosts(tmp_path: Path) -> None:
    lock = module(ROOT / "playbooks/action_plugins/deploy_lock.py")
    script = lock.SCRIPT.replace("/run/streamer-deploy", str(tmp_path / "leases"))

    def lease(who: str, seconds: int, *hosts: str) -> tuple[int, str]:
        done = subprocess.run(["sh", "-c", script, "lock", who, str(seconds), *hosts], capture_output=True, check=False)
        assert done.stderr == b""
        return done.returncode, done.stdout.decode()

    taken, refused = (0, ""), (lock.TAKEN, "pi2 anna@desk (process 1)\n")
    assert lease("anna@desk (process 1)", 60, "pi1", "pi2") == taken
    assert lease("ben@lap (process 1)", 60, "pi3", "pi2") == refused
    assert lease("ben@lap (process 1)", 60, "pi3") == taken, "what was refused was not half taken"
    assert lease("anna@desk (process 1)", 60, "pi1", "pi2") == taken, "renewed"
    assert lease("ben@lap (process 1)", 60, "pi2") == refused
    assert lease("anna@desk (process 1)", 0, "pi1", "pi2") == taken, "given back"
    assert lease("ben@lap (process 1)", -1, "pi2", "pi1") == taken, "has run out at once"
    assert lease("anna@desk (process 2)", 60, "pi1", "pi2") == taken


def test_secrets_are_not_committed() -> None:
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()


# -- what runs on the hosts, on trees that stand for them


def run_script(tree: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a role's script as on a host, whose login's umask is a strict one; programs in `bin` stand for its own."""
    path = ROOT / "roles" / name
    parts = [path.with_name("common.sh"), path] if path.name in ("switch.sh", "started.sh", "back.sh") else [path]
    script = "".join(part.read_text() for part in parts)
    for place in ("/etc/", "/opt/", "/boot/"):
        script = script.replace(place, f"{tree}{place}")
    (tree / "bin").mkdir(exist_ok=True)
    for program in ("systemctl", "chown", "runuser", "hostname"):
        if not (tree / "bin" / program).exists():
            write_program(tree, program, f"echo {program} $* >>{tree}/called")
    return subprocess.run(
        ["sh", "-c", script, name, *arguments],
        env={"PATH": f"{tree}/bin:{os.environ['PATH']}"},
        umask=0o077,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def write_program(tree: Path, name: str, lines: str) -> None:
    (tree / "bin").mkdir(exist_ok=True)
    program = tree / "bin" / name
    program.write_text(f"#!/bin/sh\n{lines}\n")
    program.chmod(0o755)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("before", "others", "names"),
    [
        (
            "127.0.0.1\tlocalhost\n127.0.1.1\traspberrypi old\n127.0.1.10 other.example\n",
            ["localhost", "127.0.1.10 other.example"],
            "pi3",
        ),
        ("127.0.0.1 localhost", ["localhost"], "pi3"),
        ("", [], "pi3"),
        ("127.0.1.1 cam.example.org cam # not.this\n127.0.0.1 localhost\n", ["localhost"], "pi3.example.org pi3"),
        ("127.0.1.1\tcam cam.local", [], "pi3.local pi3"),
        ("127.0.1.1 cam # not.this", [], "pi3"),
    ],
)
def test_a_host_is_found_by_both_names_while_it_is_renamed(
    tmp_path: Path, before: str, others: list[str], names: str
) -> None:
    (tmp_path / "etc").mkdir()
    hosts, hostname = tmp_path / "etc/hosts", tmp_path / "etc/hostname"
    hosts.write_text(before)
    write_program(tmp_path, "hostname", f"cp {hosts} {tmp_path}/meanwhile")
    assert run_script(tmp_path, "node/files/rename.sh", "pi3").stderr == ""
    here = Path("/proc/sys/kernel/hostname").read_text().strip()
    for file, line in ((tmp_path / "meanwhile", f"{names} {here}"), (hosts, names)):
        *kept, last = file.read_text().splitlines()
        assert last == f"127.0.1.1 {line}"
        assert [line.removeprefix("127.0.0.1").strip() for line in kept] == others
    assert hostname.read_text() == "pi3\n"
    assert (mode(hosts), mode(hostname)) == (0o644, 0o644)
    # It goes on announcing the old name in the network else.
    assert "systemctl try-restart avahi-daemon.service" in (tmp_path / "called").read_text()
    assert survey(tmp_path)["hosts"] == "right"


def survey(tree: Path) -> dict[str, str]:
    """What the survey finds of a host's name, which is to be pi3."""
    found = run_script(tree, "node/files/survey.sh", "pi3")
    return dict(line.split("=", 1) for line in found.stdout.splitlines())


def test_survey_reads_a_hostname_with_comments(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hostname").write_text("# See hostname(5).\n\npi3\n")
    found = survey(tmp_path)
    assert (found["static_name"], found["hosts"]) == ("pi3", "wrong")


@pytest.mark.parametrize(
    ("line", "root", "is_on"),
    [
        ("overlayroot=tmpfs console=tty1 root=PARTUUID=1", "overlayfs", "on"),
        ("console=tty1 boot=overlay", "overlayfs", "on"),
        ("overlayroot=tmpfs console=tty1", "ext2/ext3", "off"),
        ("console=tty1 root=PARTUUID=1", "overlayfs", "off"),
    ],
)
def test_survey_finds_an_overlay_that_forgets(tmp_path: Path, line: str, root: str, is_on: str) -> None:
    write_program(tmp_path, "stat", f"echo {root}")
    write_program(
        tmp_path, "grep", f'[ "$3" != /proc/cmdline ] || {{ echo "{line}" | command -p grep "$1" "$2"; exit; }}'
    )
    found = survey(tmp_path)
    assert found["overlay"] == is_on
    assert abs(int(found["time"]) - time.time()) < 60


def include(tmp_path: Path, part: str, variables: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run a part of the role node here."""
    tasks = [{"name": "Do it", "ansible.builtin.include_tasks": str(ROOT / f"roles/node/tasks/{part}.yml")}]
    variables = load(ROOT / "roles/node/vars/main.yml") | variables
    (tmp_path / "play.yml").write_text(
        yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": tasks, "vars": variables}])
    )
    return subprocess.run([PLAYBOOK, tmp_path / "play.yml"], cwd=tmp_path, capture_output=True, text=True, check=False)


# What the role has of the plays and the inventory; and what is found on a host that has all that it is to have.
NODE = {"node_name": "pi3", "node_journal_persistent": False, "node_has_firewall": False, "node_open_ports": []}
DONE = {
    "overlay": "off",
    "name": "pi3",
    "static_name": "pi3",
    "hosts": "right",
    "cloud": "none",
    "seeds": "",
    "missing": "",
    "clock": "timesyncd-enabled",
    "journal": "",
}


@pytest.mark.parametrize(
    ("python", "told"),
    [
        (
            "py39",
            "localhost: it has Python 3.9, 3.11 or later is needed: write its card anew with Raspberry Pi OS Book",
        ),
        ("py310", "localhost: it has Python 3.10, 3.11 or later is needed: write its card anew"),
        ("", "localhost: it has no Python, 3.11 or later is needed: write its card anew"),
        ("py311", ""),
        ("py313", ""),
    ],
)
def test_system_that_is_too_old_is_told_before_anything_is_done(tmp_path: Path, python: str, told: str) -> None:
    node = load(ROOT / "roles/node/vars/main.yml") | NODE
    found = {"node_found": DONE | {"python": python, "name": "raspberrypi"}}
    (due,) = evaluated(tmp_path, "_node_due", [node | found])
    assert due == [*(["python"] if told else []), "name"]
    if told:
        assert told in " ".join(include(tmp_path, "python", found).stdout.split())


def test_host_that_forgets_all_is_told_before_anything_is_done(tmp_path: Path) -> None:
    node = load(ROOT / "roles/node/vars/main.yml") | NODE
    found = {"node_found": DONE | {"python": "py311", "overlay": "on", "name": "raspberrypi"}}
    assert evaluated(tmp_path, "_node_due", [node | found]) == [["overlay", "name"]]
    told = " ".join(include(tmp_path, "overlay", found).stdout.split())
    assert "localhost: its overlay file system is on, so all that is written would be gone with the next boot" in told


def test_another_firewall_is_looked_for_before_anything_is_switched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = load(ROOT / "roles/node/vars/main.yml") | NODE
    # The roles' templates, by a play elsewhere.
    node["_node_firewall_wanted"] = "{{ 'wanted' if node_has_firewall else '' }}"
    cases = [(True, "", ["packages", "firewall_check"]), (True, "wanted", ["packages"]), (False, "old", ["packages"])]
    found = DONE | {"python": "py311", "packages_free": 9000, "missing": "nftables", "time": int(time.time())}
    variables_of = [
        node | {"node_has_firewall": wants, "node_found": found | {"firewall": has}} for wants, has, _ in cases
    ]
    assert evaluated(tmp_path, "_node_due", variables_of) == [due for _, _, due in cases]

    (tmp_path / "files").symlink_to(ROOT / "roles/node/files")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    chain = "type filter hook input priority filter; policy %s;"
    for policy, told in (("drop", "the table ip filter lets in what it knows and refuses the rest"), ("accept", "")):
        write_program(tmp_path, "nft", f"printf 'table ip filter {{\\n{chain % policy}\\n}}\\n'")
        done = include(tmp_path, "firewall_check", {"node_found": {}, "node_open_ports": [5555]})
        assert (done.returncode == 0) == (not told), done.stdout
        assert told in (said := " ".join(done.stdout.split()))
        assert ("open 22, 5555 there" in said) == bool(told)


def test_system_that_is_new_enough_is_the_package_s() -> None:
    least = load(ROOT / "roles/node/vars/main.yml")["_node_python_minor"]
    assert f'requires-python = ">=3.{least}"' in (ROOT / "pyproject.toml").read_text()


def test_clock_is_waited_for_where_apt_would_refuse_its_lists(tmp_path: Path) -> None:
    node = load(ROOT / "roles/node/vars/main.yml") | NODE
    now = int(time.time())
    found = [
        DONE | {"python": "py311", "packages_free": 9000, "missing": missing, "time": now - behind_s}
        for missing, behind_s in (("nftables", 120), ("nftables", 30), ("nftables", -120), ("", 120))
    ]
    due = evaluated(tmp_path, "_node_due", [node | {"node_found": each} for each in found])
    assert due == [["time", "packages"], ["packages"], ["packages"], []]


@pytest.mark.parametrize(("ahead_s", "told"), [(0, ""), (7200, "localhost: its clock is 120 minutes behind this")])
def test_clock_that_is_behind_is_waited_for_and_then_told(tmp_path: Path, ahead_s: int, told: str) -> None:
    now = int(time.time())
    found = {"_node_now": now + ahead_s, "_node_clock_wait_s": 1, "node_found": {"time": now}}
    done = include(tmp_path, "time", found)
    assert (done.returncode == 0) == (not told), done.stdout
    assert told in " ".join(done.stdout.split())


@pytest.mark.parametrize("zone", ["UTC0", "EST5", "CET-1"])
def test_time_that_clocks_are_measured_by_is_that_of_every_zone(
    zone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    (told,) = evaluated(tmp_path, "_node_now", [load(ROOT / "roles/node/vars/main.yml")])
    assert abs(int(told) - time.time()) < 60


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ("throttled=0x0", []),
        ("throttled=0x50005", ["under-voltage since its boot: give it a better power supply, or a shorter cable"]),
        ("throttled=0x10000", ["under-voltage since its boot: give it a better power supply, or a shorter cable"]),
        ("throttled=0xe0008", ["slowed down by heat since its boot: cool it"]),
        ("throttled=0x80000", ["slowed down by heat since its boot: cool it"]),
        ("VCHI initialization failed", []),
        ("", []),
    ],
)
def test_status_tells_of_a_pi_s_power_and_heat(tmp_path: Path, seen: str, said: list[str]) -> None:
    script = load(ROOT / "playbooks/status.yml")[0]["tasks"][0]["vars"]["script"]
    write_program(tmp_path, "systemctl", "echo active")
    if seen:
        write_program(tmp_path, "vcgencmd", f'[ "$1" != get_throttled ] || echo "{seen}"')
    done = subprocess.run(
        ["/bin/sh", "-c", script, "status", "streamer-sender"],
        env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["streamer-sender active, release none", *said]


def test_status_says_which_hub_has_what_cameras_or_why_it_does_not_say(tmp_path: Path) -> None:
    told = load(ROOT / "playbooks/status.yml")[0]["tasks"][2]["vars"]["told"]
    table: dict[str, Any] = {"rc": 0, "stdout_lines": ["camera  state", "pi1      LIVE"], "stderr_lines": []}
    away: dict[str, Any] = {"rc": 1, "stdout_lines": [], "stderr_lines": ["streamer: no hub answers at unix:hub.sock"]}
    new: dict[str, Any] = {"rc": 2, "msg": "Error executing command.", "stdout_lines": [], "stderr_lines": []}
    locked: dict[str, Any] = {"failed": True, "msg": "Missing sudo password"}
    lost: dict[str, Any] = {"unreachable": True}
    cases = [
        ([("hub", table)], table["stdout_lines"]),
        ([("hub", table), ("spare", table)], ["hub:", *table["stdout_lines"], "spare:", *table["stdout_lines"]]),
        ([("hub", away)], ["hub: no hub answers at unix:hub.sock"]),
        ([("hub", new), ("spare", locked)], ["hub: no release", "spare: Missing sudo password"]),
        ([("hub", lost), ("spare", away)], ["hub: no answer", "spare: no hub answers at unix:hub.sock"]),
    ]
    variables = [
        {"told": told, "walls": {"results": [{"item": hub} | answer for hub, answer in answers]}}
        for answers, _ in cases
    ]
    said = evaluated(tmp_path, "told[1:]", variables)  # but for this host's own line
    assert said == [lines for _, lines in cases]


def test_packages_wait_for_whoever_is_fetching_some(tmp_path: Path) -> None:
    *_, last = load(ROOT / "roles/node/tasks/packages.yml")[0]["rescue"]
    locked = "'/usr/bin/apt-get -y install' failed: E: Could not get lock /var/cache/apt/archives/lock. It is held by"
    results: list[dict[str, Any]] = [
        {"failed": True, "msg": locked},
        {"failed": True, "msg": "No package matching 'python3-zmq' is available"},
        {"failed": False, "changed": True},
    ]
    told = evaluated(tmp_path, last["until"], [{last["register"]: result} for result in results])
    assert told == [False, True, True]
    assert last["retries"] * last["delay"] >= last["ansible.builtin.apt"]["lock_timeout"]


def test_survey_finds_which_hubs_a_sender_knows(tmp_path: Path) -> None:
    assert survey(tmp_path)["hub_keys"] == ""
    sender = plan({"cameras": ["pi1"], "hubs": ["left", "right"]}, pi1={"streamer_hub": ["right", "left"]})
    config = fleet.sender_with_keys(sender["hosts"]["pi1"]["sender"], {"left": KEY, "right": OTHER}, "")
    (tmp_path / "etc/streamer").mkdir(parents=True)
    # As Ansible's to_nice_yaml writes it.
    (tmp_path / "etc/streamer/sender.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert survey(tmp_path)["hub_keys"].split() == [*config["hubs"], OTHER, KEY]


def test_a_release_can_be_read_by_the_user_who_runs_it(tmp_path: Path) -> None:
    # In place of the host's Python: a venv, the installer and the imports do nothing here but make files.
    write_program(tmp_path, "python3", 'for last; do :; done; mkdir -p "$last/bin"; ln -s /bin/true "$last/bin/python"')
    script = tmp_path / "install.sh"
    script.write_text((ROOT / "roles/streamer/files/install.sh").read_text().replace("/usr/bin/python3", "python3"))
    release = tmp_path / "opt/streamer/releases/one"
    write_program(tmp_path, "runuser", "")
    done = subprocess.run(
        ["sh", script, release, "one.whl", "streamer"],
        env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        umask=0o077,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0
    assert {mode(path) for path in (release, *release.parents) if tmp_path in path.parents} == {0o755}
    assert mode(release / ".complete") == 0o644


HUB_FILES = ("wall_password", "wall.crt", "wall.key")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A hub that has two releases, and runs the first."""
    for directory in ("etc/streamer", "etc/systemd/system", "opt/streamer/releases/1", "opt/streamer/releases/2"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "etc/systemd/system/streamer-hub.service").write_text("[Service]\nUser=streamer\n")
    (tmp_path / "etc/streamer/hub.key").write_text("")
    # As the real one: it does not start without what its configuration names.
    needed = f"sed -n 's,^.*: /etc,{tmp_path}/etc,p' {tmp_path}/etc/streamer/hub.yml"
    log = f"echo systemctl $* >>{tmp_path}/called"
    write_program(tmp_path, "systemctl", f"{log}; for file in $({needed}); do [ -e $file ] || exit 1; done")
    assert run_script(tmp_path, "streamer/files/switch.sh", "1").returncode == 0
    return tmp_path


def set_up(hub: Path, *, release: str = "", start: bool = True, settings: str = "", **files: str) -> None:
    """Give a hub its files, or those that a deploy brings before the start fails; `settings` stand in hub.yml."""
    if release:
        assert run_script(hub, "streamer/files/switch.sh", release).returncode == 0
    names = {"password": "wall_password", "crt": "wall.crt", "key": "wall.key"}
    named = [f"{part}: /etc/streamer/{names[part]}\n" for part in files]
    (hub / "etc/streamer/hub.yml").write_text("".join([settings, *named]))
    for part, text in files.items():
        (hub / "etc/streamer" / names[part]).write_text(text)
        (hub / "etc/streamer" / names[part]).chmod(0o640)
    if start:
        for name in set(HUB_FILES) - {names[part] for part in files}:
            (hub / "etc/streamer" / name).unlink(missing_ok=True)
        done = run_script(hub, "streamer/files/started.sh", "streamer-hub", "digest", "1 2")
        assert (done.returncode, done.stderr) == (0, "")


def went_back(hub: Path, release: str) -> dict[str, str]:
    """Go back, and return what the hub has then of its three files."""
    done = run_script(hub, "streamer/files/back.sh", release, "streamer-hub")
    assert (done.returncode, done.stderr) == (0, "")
    assert (hub / "opt/streamer/current").resolve().name == release
    paths = [hub / "etc/streamer" / name for name in HUB_FILES]
    assert {mode(path) for path in paths if path.exists()} <= {0o640}
    return {path.name: path.read_text() for path in paths if path.exists()}


def test_a_hub_that_goes_back_has_its_certificate_and_key_again(hub: Path) -> None:
    set_up(hub, crt="A", key="a")
    set_up(hub, crt="B", key="c", start=False)  # they do not fit
    assert went_back(hub, "1") == {"wall.crt": "A", "wall.key": "a"}
    for name in HUB_FILES:
        (hub / "etc/streamer" / name).unlink(missing_ok=True)
    set_up(hub, release="2", start=False)
    assert went_back(hub, "1") == {"wall.crt": "A", "wall.key": "a"}


def test_a_hub_that_goes_back_has_a_password_again(hub: Path) -> None:
    set_up(hub, password="first")
    set_up(hub, release="2")  # on loopback
    assert [path.name for path in (hub / "etc/streamer").glob("wall*")] == []
    assert went_back(hub, "1") == {"wall_password": "first"}
    set_up(hub, release="2", password="later", start=False)
    assert went_back(hub, "1") == {"wall_password": "first"}
    set_up(hub, release="2", password="changed")
    assert went_back(hub, "1") == {"wall_password": "changed"}, "whoever knew the first one knows it still"


def test_what_a_release_keeps_is_no_more_open_than_it_was(hub: Path) -> None:
    set_up(hub, password="first", crt="A", key="a")
    ran = hub / "opt/streamer/releases/1/ran"
    assert {path.name: mode(path) for path in ran.iterdir()} == {
        "hub.yml": mode(hub / "etc/streamer/hub.yml"),
        "streamer-hub.service": mode(hub / "etc/systemd/system/streamer-hub.service"),
        **dict.fromkeys(HUB_FILES, 0o640),
    }
    assert (mode(ran), mode(ran.parents[2] / "history")) == (0o755, 0o644)
    set_up(hub, password="first")
    assert [path.name for path in ran.glob("wall*")] == ["wall_password"], "what it does not need any more goes"
    removed = load(ROOT / "roles/streamer/vars/main.yml")["_streamer_files"]["streamer-hub"]
    assert {path.name for path in ran.iterdir()} <= {Path(path).name for path in removed}, "and all with the hub"


def rules(*ports: int, ssh: int = 22) -> str:
    """What roles/node writes for a host with these ports open."""
    template = (ROOT / "roles/node/templates/streamer-firewall.nft.j2").read_text()
    said = {"node_name": "hub", "_node_ssh_ports": [ssh], "node_open_ports": list(ports)}
    rendered: str = Template(template, trim_blocks=True, keep_trailing_newline=True).render(said)
    return rendered


def opened(text: str) -> list[str]:
    return re.findall(r"^\t\tmeta l4proto { 6, 17 } th dport { (.*) } accept$", text, re.MULTILINE)


def test_a_hub_that_goes_back_has_its_ports_open_again_and_closes_none(hub: Path) -> None:
    file = hub / "etc/streamer-firewall.nft"
    reload = "systemctl try-reload-or-restart streamer-firewall.service\n"
    set_up(hub, settings="bind: tcp://*:5555\nhttp: 0.0.0.0:8080\n")
    set_up(hub, release="2", settings="bind: tcp://*:5557\n")
    for now, then in (
        (rules(5557, 9100, ssh=2222), ["5555, 8080", "5557, 9100"]),
        (rules(ssh=2222), ["5555, 8080"]),
        (rules(5555, 8080, ssh=2222), ["5555, 8080"]),
    ):
        (hub / "called").unlink(missing_ok=True)
        file.write_text(now)
        file.chmod(0o644)
        went_back(hub, "1")
        assert opened(file.read_text()) == then
        assert "tcp dport { 2222 } accept" in file.read_text(), "sshd has moved since"
        assert mode(file) == 0o644
        assert [line for line in file.read_text().splitlines() if line in now.splitlines()] == now.splitlines()
        assert (reload in (hub / "called").read_text()) == (file.read_text() != now)
    file.unlink()
    went_back(hub, "1")
    assert not file.exists(), "who has none gets none"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"streamer_http": "0.0.0.0:8080", "hub_options": {"plain_bind": "tcp://127.0.0.1:5556"}},
        {"streamer_http": "10.127.0.1:8080", "streamer_port": 11000},
        {"streamer_http": "[::1]:8080", "hub_options": {"plain_bind": "tcp://*:5556"}},
        {"streamer_http": "[::]:8443", "hub_options": {"plain_bind": "tcp://[::1]:5556"}},
        {"streamer_http": "localhost:8080", "hub_options": {"plain_bind": "tcp://[2001:db8::1]:5000"}},
    ],
    ids=str,
)
def test_a_hub_that_goes_back_to_before_it_had_a_firewall_has_its_ports_open(
    hub: Path, variables: dict[str, Any]
) -> None:
    made = plan(FLEET, hub={**variables, "node_firewall": True})["hosts"]["hub"]
    settings = made["hub_config"] | variables.get("hub_options", {})
    # As Ansible's to_nice_yaml writes it.
    text = yaml.safe_dump({key: settings[key] for key in settings if key in ("bind", "http", "plain_bind")})
    set_up(hub, settings=text)
    set_up(hub, release="2", settings="bind: tcp://*:5557\n")
    file = hub / "etc/streamer-firewall.nft"
    file.write_text(rules(5557))
    went_back(hub, "1")
    assert opened(file.read_text()) == [", ".join(map(str, made["ports"])), "5557"]


def test_a_hub_that_goes_back_to_another_user_can_read_its_key(hub: Path) -> None:
    set_up(hub)
    unit = hub / "etc/systemd/system/streamer-hub.service"
    unit.write_text("[Service]\nUser=anna\n")
    went_back(hub, "1")
    assert f"chown streamer {hub}/etc/streamer/hub.key" in (hub / "called").read_text()


def test_a_camera_that_goes_back_knows_the_new_key_of_its_hub(hub: Path) -> None:
    def told(port: int, *keys: str) -> str:
        hubs = "".join(f"- tcp://192.0.2.{number}:{port}\n" for number, _ in enumerate(keys))
        lines = "".join(f"- {key}\n" for key in keys if key)
        return f"# By Ansible\nname: pi1\nhubs:\n{hubs}fps: 30.0\ncurve_hub_keys:\n{lines}"

    set_up(hub, start=False)
    sender = hub / "etc/streamer/sender.yml"
    (hub / "etc/systemd/system/streamer-sender.service").write_text("[Service]\nUser=streamer\n")
    sender.write_text(told(5555, KEY, KEY))
    sender.chmod(0o644)
    assert run_script(hub, "streamer/files/started.sh", "streamer-sender", "digest", "1 2").returncode == 0
    before = sender.read_text()
    # The second hub has a new card, and both another port; or there is no file, or nothing in it.
    for now, then in (
        (told(5556, KEY, OTHER), told(5555, KEY, OTHER)),
        (told(5556, OTHER), told(5555, OTHER, KEY)),
        (told(5555, "", ""), before),
        ("", before),
        (None, before),
    ):
        sender.unlink() if now is None else sender.write_text(now)
        done = run_script(hub, "streamer/files/back.sh", "1", "streamer-sender")
        assert (done.returncode, done.stderr) == (0, "")
        assert (sender.read_text(), mode(sender)) == (then, 0o644)


@pytest.mark.parametrize(
    ("found", "names", "fresh"),
    [
        (None, [], {}),
        ("", ["pi1"], {"pi1": KEY}),
        (f"pi1 {KEY}\n", ["pi1", "pi2"], {"pi2": OTHER}),
        (f"pi1 {KEY}\n", ["pi1"], {"pi1": OTHER}),
        (f"pi1 {KEY}\npi2 {KEY}\n", ["pi2"], {"pi2": OTHER}),
        (f"pi2 {KEY}\npi10 {KEY}\n", ["pi10", "pi2", "pi1"], {}),
    ],
)
def test_who_may_send_is_written_as_the_plays_work_it_out(
    tmp_path: Path, found: str | None, names: list[str], fresh: dict[str, str]
) -> None:
    (tmp_path / "etc/streamer").mkdir(parents=True)
    file = tmp_path / "etc/streamer/allowed_keys"
    if found is not None:
        file.write_text(found)
    words = [word for pair in fresh.items() for word in pair]
    done = run_script(tmp_path, "hub/files/allow.sh", " ".join(names), *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert file.read_text() == fleet.allowed_keys(found or "", names, fresh)
    assert mode(file) == 0o644


def test_two_runs_side_by_side_lose_no_camera_s_key(tmp_path: Path) -> None:
    (tmp_path / "etc/streamer").mkdir(parents=True)
    write_program(tmp_path, "sync", "sleep 0.1")  # one reads while another is about to write
    names = [f"pi{number}" for number in range(1, 9)]
    with ThreadPoolExecutor(len(names)) as pool:
        done = pool.map(lambda name: run_script(tmp_path, "hub/files/allow.sh", " ".join(names), name, KEY), names)
        assert {(one.returncode, one.stderr) for one in done} == {(0, "")}
    assert (tmp_path / "etc/streamer/allowed_keys").read_text() == fleet.allowed_keys(
        "", names, dict.fromkeys(names, KEY)
    )


@pytest.mark.parametrize("script", list(ROOT.glob("roles/*/files/*.sh")), ids=str)
def test_shell_scripts_parse(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)
