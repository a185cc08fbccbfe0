"""The gate against slower hot paths: it holds, and it can fail."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.bench import check


def test_judges_by_the_limit() -> None:
    limit = check.MEASURED["send"] * check.TOLERANCE
    assert check.judge({**check.MEASURED, "send": limit}) == []
    assert check.judge({**check.MEASURED, "send": limit + 0.01}) == [
        f"send costs {limit + 0.01:.2f} x the plain program, at most {limit:.2f} is allowed"
    ]


@pytest.mark.timeout(600)  # counting is slow where much else runs
@pytest.mark.skipif(not shutil.which("valgrind") and "CI" not in os.environ, reason="valgrind is not installed")
def test_hot_paths_cost_what_they_did() -> None:
    assert check.judge(check.ratios()) == []
