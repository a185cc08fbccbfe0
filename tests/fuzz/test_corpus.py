"""What fuzzing and reading have found, tried again: each file is named for what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, close_page

CORPUS = Path(__file__).parent / "corpus"
FOUND = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.glob("*/*"))


@pytest.fixture(scope="module", autouse=True)
def _page() -> object:
    yield
    close_page()


def test_every_target_has_its_corpus() -> None:
    assert {name.partition("/")[0] for name in FOUND} == set(TARGETS)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", FOUND)
def test_it_holds(name: str) -> None:
    TARGETS[name.partition("/")[0]].check((CORPUS / name).read_bytes())
