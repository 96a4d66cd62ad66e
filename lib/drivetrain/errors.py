"""Errors for the person who meets them: what, where, why, and what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: ``code`` is stable, ``where`` is file:line, dataset or row, ``fix`` is what to do."""

    code: str
    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} [{self.code}]\n    → {self.fix}"


class DrivetrainError(Exception):
    """One or more problems, reported together."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


class ConfError(DrivetrainError):
    """The conf folder cannot be used; ``problems`` holds everything that is wrong with it."""
