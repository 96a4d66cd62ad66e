"""What tuning says of one setting."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """One setting: what it is and would have been, why, what else was weighed, and what it rests on: ``rule`` (sizes
    and cores), ``learned`` (earlier runs), ``try`` (to learn more), ``conservative`` (these were no guide) or
    ``frozen`` (a person fixed it)."""

    setting: str
    value: str
    because: str
    default: str
    alternatives: tuple[str, ...]
    confidence: str
