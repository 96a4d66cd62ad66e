"""The tests of the protocol are worth something: each decision taken wrongly is found out."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from model import Rules
from test_model import scripted

MUTANTS: dict[str, Any] = runpy.run_path(str(Path(__file__).resolve().parents[1] / "scripts" / "mutants.py"))
EXAMPLES = 1000  # at most, where no script kills; most die within a few


@pytest.mark.parametrize("rules", MUTANTS["MUTANTS"], ids=lambda rules: rules.__name__)
def test_mutant_dies(rules: type[Rules]) -> None:
    assert scripted(rules()) or MUTANTS["tried"](rules, EXAMPLES).law, f"ALIVE: {rules.__doc__}"


def test_control_lives() -> None:
    assert scripted(Rules()) is None
    assert MUTANTS["tried"](Rules, EXAMPLES // 10).law is None
