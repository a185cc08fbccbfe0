"""Reboots hosts of a fleet, and takes their power, at random moments: `python -m tests.lab.reboots`; root on Debian.

Each time all cameras must be LIVE again by themselves, and no other host's service may have been restarted.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import statistics
import sys
import time

from tests.lab import lab, test_fleet
from tests.lab.test_fleet import CAMERAS, HOSTS

KINDS = {
    ("hub", "reboot"): "hub rebooted",
    ("hub", "power"): "hub's power gone for up to 5 s",
    ("camera", "reboot"): "a camera rebooted",
    ("camera", "power"): "a camera's power gone for up to 5 s",
}


def hurt(host: str, how: str, rng: random.Random) -> float:
    """Take a host away, wait until all cameras are back; returns how long that took once the host was there again."""
    before = test_fleet.processes()
    time.sleep(rng.uniform(0, 2))
    if how == "reboot":
        lab.reboot(host)
    else:
        lab.kill(host)
        time.sleep(rng.uniform(0, 5))
        lab.start(host)
    began = time.monotonic()
    test_fleet.all_live()
    took_s = time.monotonic() - began
    after = test_fleet.processes()
    restarted = [other for other in HOSTS if other != host and after[other] != before[other]]
    assert not restarted, f"restarted without need: {', '.join(restarted)}"
    return took_s


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of hosts and moments")
    options = parser.parse_args()
    lab.need_root(parser)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without taking the lab down
    rng = random.Random(options.seed)
    took: dict[str, list[float]] = {told: [] for told in KINDS.values()}
    broken = dict.fromkeys(took, 0)
    lab.down()
    try:
        lab.up()
        test_fleet.deploy()
        for number in range(options.tries):
            kind, how = rng.choice(list(KINDS))
            host = "hub" if kind == "hub" else rng.choice(CAMERAS)
            told = KINDS[kind, how]
            try:
                took[told].append(hurt(host, how, rng))
                print(f"{number + 1} of {options.tries}: {told}: {host}: {took[told][-1]:.1f} s", file=sys.stderr)
            except AssertionError as error:
                broken[told] += 1
                print(f"{number + 1} of {options.tries}: {told}: {host}: {error}", file=sys.stderr)
    finally:
        lab.down()
    print(f"seed {options.seed}\n\n| case | tried | recovered | median | worst |\n| --- | --- | --- | --- | --- |")
    for told, seconds in took.items():
        median, worst = (f"{value:.1f} s" for value in (statistics.median(seconds or [0]), max(seconds, default=0)))
        print(f"| {told} | {len(seconds) + broken[told]} | {len(seconds)} | {median} | {worst} |")
    return int(any(broken.values()))


if __name__ == "__main__":
    sys.exit(main())
