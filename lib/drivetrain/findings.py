"""What is wrong with a file of conf, each thing with its line and its remedy; and the models that know its keys."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from drivetrain.contracts import NAME
from drivetrain.errors import Problem
from drivetrain.settings import shown

Path_ = tuple[str | int, ...]


class Findings:
    """Collects the problems of one file."""

    def __init__(self, path: Path, lines: Mapping[Path_, int], problems: list[Problem]) -> None:
        self.path, self.lines, self.problems = path, lines, problems

    def where(self, at: Sequence[str | int]) -> str:
        """file:line of the nearest node at or above ``at``."""
        place = tuple(at)
        while place and place not in self.lines:
            place = place[:-1]
        return f"{shown(self.path)}:{self.lines.get(place, 1)}"

    def add(self, code: str, at: Sequence[str | int], what: str, fix: str) -> None:
        self.problems.append(Problem(code, self.where(at), what, fix))

    def add_pydantic(
        self, error: ValidationError, at: Path_, model: type[BaseModel], places: Mapping[str, Path_]
    ) -> None:
        """One problem for each thing that the model refused; ``places`` maps its top-level keys to where they stand."""
        for item in error.errors():
            loc = tuple(part for part in item["loc"] if not (isinstance(part, str) and "[" in part))
            place = places.get(str(loc[0]), (*at, *loc)) + loc[1:] if loc else at
            key = ".".join(map(str, loc))
            if item["type"] == "extra_forbidden":
                self.add("unknown-key", place, f"unknown key {key!r}", nearest(str(loc[-1]), keys(model, loc[:-1])))
            elif item["type"] == "missing":
                self.add("missing-key", place, f"{key!r} is missing", f"add {key}: …")
            else:  # below these a password may stand where a reference should
                given = "" if loc[:1] in (("jdbc",), ("kafka",)) else f" (it is {item['input']!r})"
                self.add("bad-value", place, f"{key}: {item['msg']}{given}", "see docs/contracts.md")


def keys(model: type[BaseModel], at: Sequence[str | int]) -> list[str]:
    """The keys that the model, or the one that stands in it at that place, knows."""
    for part in at:
        inner = next(
            (field.annotation for name, field in model.model_fields.items() if part == (field.alias or name)), None
        )
        model = next(
            (kind for kind in (inner, *get_args(inner)) if isinstance(kind, type) and issubclass(kind, BaseModel)),
            model,
        )
    return [field.alias or name for name, field in model.model_fields.items()]


def nearest(name: str, known: Iterable[str], verb: str = "did you mean") -> str:
    """The advice that goes with an unknown name."""
    options = sorted(set(known))
    match = difflib.get_close_matches(name.lower(), [option.lower() for option in options], 1, 0.6)
    found = next((option for option in options if match and option.lower() == match[0]), None)
    listed = ", ".join(options[:12]) + (" …" if len(options) > 12 else "")
    return f"{verb} {found!r}?" if found else f"known here: {listed or 'nothing'}"


def repeated(names: Sequence[str]) -> list[str]:
    """The names that stand there more than once, each once."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def as_text(value: Any) -> str:
    """A value of YAML as Spark and Kafka read it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Model(BaseModel):
    """Part of conf: unknown keys are errors, names in camelCase."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=False)


def extras(items: Any, at: Path_, model: type[Model], found: Findings) -> Any:
    """customProperties as one model; what is refused has its default."""
    pairs = [(i, item) for i, item in enumerate(items or []) if isinstance(item, dict) and "vendor" not in item]
    values = {str(item.get("property")): item.get("value") for _, item in pairs}
    places = {str(item.get("property")): (*at, i, "value") for i, item in pairs}
    for name in {n for n in values if sum(str(item.get("property")) == n for _, item in pairs) > 1}:
        found.add("twice", places[name], f"{name!r} stands twice", "keep one")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found.add_pydantic(error, at, model, places)
        refused = {str(item["loc"][0]) for item in error.errors()}
        return model.model_validate({key: value for key, value in values.items() if key not in refused})


def check_name(name: str, at: Sequence[str | int], what: str, found: Findings) -> None:
    """Names meet SQL and paths, so only plain ones pass."""
    if not NAME.fullmatch(name):
        found.add(
            "name",
            at,
            f"{what} name {name[:80]!r} is not allowed",
            "use a-z, 0-9 and _, begin with a letter, at most 63",
        )
