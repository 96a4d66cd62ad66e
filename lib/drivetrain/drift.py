"""How the header of a feed fits its contract: what is where, missing, new, and probably renamed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drivetrain.contracts import Dataset


@dataclass(frozen=True)
class Fit:
    """``positions``: feed column -> index in the header (a column which the feed may lack, and does, is not there).

    ``missing`` may not be missing; ``absent`` may; ``unknown`` are names that the contract does not have.
    """

    positions: Mapping[str, int]
    missing: tuple[str, ...]
    absent: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def reason(self) -> str | None:
        """Why no record under this header can be taken; None where they can."""
        if not self.missing:
            return None
        return "; ".join(f"column {name} is missing from the header{self._renamed(name)}" for name in self.missing)

    def _renamed(self, name: str) -> str:
        near = difflib.get_close_matches(name.lower(), [u.lower() for u in self.unknown], 1, 0.6)
        if not near and len(self.missing) == len(self.unknown) == 1:
            near = [self.unknown[0]]
        return f" (renamed to {near[0]}? then add it to the column's aliases)" if near else ""


def fit(header: Sequence[str], dataset: Dataset) -> Fit:
    """Compare names without regard to case; aliases count."""
    index = {name.lower(): i for i, name in enumerate(header)}
    positions: dict[str, int] = {}
    lacking = []
    for name in dataset.feed_columns:
        known = next((n for n in (name, *_aliases(dataset, name)) if n.lower() in index), None)
        if known is None:
            lacking.append(name)
        else:
            positions[name] = index[known.lower()]
    used = set(positions.values())
    return Fit(
        positions,
        tuple(name for name in lacking if name not in dataset.may_lack),
        tuple(name for name in lacking if name in dataset.may_lack),
        tuple(name for i, name in enumerate(header) if i not in used),
    )


def _aliases(dataset: Dataset, feed_name: str) -> tuple[str, ...]:
    return next((column.aliases for column in dataset.columns if column.feed_name == feed_name), ())


def column_name(feed_name: str) -> str:
    """A feed's own name as a name that silver allows."""
    plain = re.sub(r"[^a-z0-9]+", "_", feed_name.lower()).strip("_")
    return (plain if plain[:1].isalpha() else f"c_{plain}")[:63]


def new_columns(unknown: Sequence[str], dataset: Dataset) -> dict[str, str]:
    """Silver name -> feed name of the columns to add; one whose name is taken is left in the raw record."""
    taken = set(dataset.silver_types)
    return {column_name(name): name for name in reversed(unknown) if column_name(name) not in taken}
