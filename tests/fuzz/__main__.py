"""Fuzzing: `python -m tests.fuzz [--seconds 60] [--seed N] [TARGET …]`, or `make fuzz SECONDS=600`.

Each target gets its share of the time: a third for hypothesis, which makes inputs by the target's own rules, and the
rest for atheris, which starts from these and follows the coverage. Where there is no atheris (its wheels are for Linux
on x86-64) hypothesis gets all. An input that breaks something is kept in `build/fuzz/` and named; with the seed that is
printed at the start hypothesis makes the same inputs again. What was found belongs into `corpus/`, under a
name that says what it is; `test_corpus.py` replays it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path(__file__).parents[2] / "build" / "fuzz"
SEEDS_MAX = 2000
INPUT_MAX_BYTES = 16_384
PATIENCE_S = 120  # for starting, shrinking what was found, and ending
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None


def keep(name: str, data: bytes) -> Path:
    """Keep an input that broke something."""
    FOUND.mkdir(parents=True, exist_ok=True)
    path = FOUND / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def by_hypothesis(name: str, seconds: float, seed: int, seeds: Path) -> int:
    """Let hypothesis try; keep some of its inputs as seeds. Returns how many it tried.

    Raises:
        SystemExit: it found something.
    """
    import hypothesis
    from hypothesis.configuration import set_hypothesis_home_dir

    set_hypothesis_home_dir(FOUND / "hypothesis")  # its table of characters takes seconds to make
    from tests.fuzz.targets import TARGETS, close_page

    target = TARGETS[name]
    tried, last = 0, b""
    ends = math.inf

    @hypothesis.given(data=target.inputs)
    @hypothesis.settings(
        max_examples=10**9,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )
    def attempt(data: bytes) -> None:
        nonlocal tried, last, ends
        ends = min(ends, time.monotonic() + seconds)
        if time.monotonic() > ends and not found:
            raise KeyboardInterrupt
        tried += 1
        if tried <= SEEDS_MAX:
            (seeds / f"{tried}").write_bytes(data)
        try:
            target.check(data)
        except Exception:
            last = data
            found.append(data)
            raise

    found: list[bytes] = []
    try:
        hypothesis.seed(seed)(attempt)()
    except KeyboardInterrupt:
        if not found:
            return tried
    except Exception:  # noqa: BLE001 - whatever broke
        traceback.print_exc()
    finally:
        close_page()
    raise SystemExit(f"{name}: broken by {keep(name, last)}, found by hypothesis with --seed {seed}")


def by_atheris(name: str, seconds: float, seed: int, seeds: Path) -> None:
    """Let atheris try, from the corpus and the seeds; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["streamer"]):
        from tests.fuzz.targets import TARGETS, close_page
    target = TARGETS[name]
    words = seeds.with_suffix(".words")
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words))
    FOUND.mkdir(parents=True, exist_ok=True)
    options = {
        "max_total_time": max(1, round(seconds)),
        "seed": seed,
        "max_len": INPUT_MAX_BYTES,
        "timeout": 20,
        "rss_limit_mb": 2048,
        "dict": words,
        "artifact_prefix": f"{FOUND}/{name}-",
        "verbosity": 0,
        "print_final_stats": 1,
    }
    flags = [f"-{key}={value}" for key, value in options.items()]
    (CORPUS / name).mkdir(exist_ok=True)

    def check(data: bytes) -> None:
        try:
            target.check(data)
        except BaseException:
            close_page()  # its thread would keep the process alive
            raise

    atheris.Setup([sys.argv[0], *flags, str(seeds), str(CORPUS / name)], check)
    atheris.Fuzz()


def fuzz(name: str, seconds: float, seed: int) -> bool:
    """Try one target, in processes of their own; return whether it held."""
    shares = {"hypothesis": seconds / 3, "atheris": seconds * 2 / 3} if HAS_ATHERIS else {"hypothesis": seconds}
    tried = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        seeds = Path(folder) / "seeds"
        seeds.mkdir()
        for engine, share in shares.items():
            command = [sys.executable, "-m", "tests.fuzz", "--engine", engine, name, str(share), str(seed), str(seeds)]
            try:
                done = subprocess.run(
                    command,
                    check=False,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=share + PATIENCE_S,
                    env={**os.environ, "TMPDIR": folder},  # atheris ends its process without a last word
                )
            except subprocess.TimeoutExpired:
                print(f"{name}: {engine} with --seed {seed} has not ended after {share + PATIENCE_S:.0f} s", flush=True)
                return False
            if done.returncode:
                print(done.stdout[-4000:], done.stderr[-8000:], sep="\n")
                print(f"{name}: does not hold, by {engine} with --seed {seed}; the input is in {FOUND}", flush=True)
                return False
            count = re.search(r"(?:tried|executed_units:)\s+(\d+)", done.stdout + done.stderr)
            tried.append(f"{int(count[1]) if count else 0:,} by {engine}")
    print(f"{name}: holds; tried {', '.join(tried)}", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 2**31))
    parser.add_argument("--engine", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*")
    options = parser.parse_args()
    if options.engine:
        engine, name, seconds, seed, seeds = options.engine
        if engine == "atheris":
            by_atheris(name, float(seconds), int(seed), Path(seeds))
        else:
            print("tried", by_hypothesis(name, float(seconds), int(seed), Path(seeds)))
        return 0
    from tests.fuzz.targets import TARGETS

    names = options.targets or list(TARGETS)
    print(f"fuzzing {', '.join(names)} for {options.seconds:g} s, --seed {options.seed}", flush=True)
    held = [fuzz(name, options.seconds / len(names), options.seed) for name in names]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
