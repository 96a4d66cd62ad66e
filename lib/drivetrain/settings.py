"""Settings in layers: base.yaml, the environment's file, DRIVETRAIN_ variables, --set. Each value knows its origin."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from drivetrain.errors import ConfError, DrivetrainError, Problem

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast, but not everywhere

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 50
TAG = "tag:yaml.org,2002:"
SCALARS = {TAG + name for name in ("null", "bool", "int", "float", "str", "timestamp")}

PREFIX = "DRIVETRAIN_"
NOT_SETTINGS = {"DRIVETRAIN_HOME", "DRIVETRAIN_PYTHON", "DRIVETRAIN_IVY_SETTINGS"}

Lines = dict[tuple[str | int, ...], int]


@dataclass(frozen=True)
class Layered:
    """The merged settings; keys below ``spark`` are whole Spark keys, never split at their dots."""

    values: dict[str, Any]
    origin: dict[tuple[str, ...], str]  # of each leaf: "conf/base.yaml:12", "DRIVETRAIN_LANDING" or "--set landing"
    root: Path  # where relative paths start: the folder that holds the conf folder


def shown(path: Path) -> str:
    """The path as a person wants to read it: relative where it lies below the working folder."""
    whole = Path(os.path.abspath(path))
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)


# --- YAML, from people who may err or mean harm -------------------------------------------------------------------


class _TooMuch(Exception):
    """Reading on would cost too much: the problem that says so is on the list."""


@dataclass
class _Reader:
    """Plain values and their lines from YAML text, and everything that is wrong with it."""

    where: str
    numbered: bool = True  # a file has lines worth naming, an environment variable has not
    lines: Lines = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    nodes: int = 0

    def read(self, text: str) -> Any:
        loader = Loader(text)
        try:
            self.refuse_depth(text)
            node = loader.get_single_node()
            return None if node is None else self.value(loader, node, (), node.start_mark.line + 1)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = f"this is not YAML: {' '.join(filter(None, (error.context, error.problem)))}"
            self.wrong("yaml-syntax", mark.line + 1 if mark else 1, what, "check indentation, colons and quotes here")
        except yaml.YAMLError as error:
            self.wrong("yaml-syntax", 1, f"this is not YAML: {error}".split("\n")[0], "save it as UTF-8 text")
        except _TooMuch:
            pass
        finally:
            loader.dispose()
        return None

    def refuse_depth(self, text: str) -> None:
        """Done on the events, because composing nodes recurses in C: a long row of brackets would end the process."""
        depth = 0
        for event in yaml.parse(text, Loader):
            opens, closes = isinstance(event, yaml.CollectionStartEvent), isinstance(event, yaml.CollectionEndEvent)
            depth += opens - closes
            if depth > MAX_DEPTH:
                what, fix = f"nested deeper than {MAX_DEPTH} levels", "write it flatter"
                self.wrong("yaml-too-deep", event.start_mark.line + 1 if event.start_mark else 1, what, fix)
                raise _TooMuch

    def wrong(self, code: str, line: int, what: str, fix: str) -> None:
        self.problems.append(Problem(code, f"{self.where}:{line}" if self.numbered else self.where, what, fix))

    def value(self, loader: Any, node: yaml.Node, path: tuple[str | int, ...], line: int) -> Any:
        self.lines[path] = line
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            fix = "write the values out instead of repeating them by aliases (*name)"
            self.wrong("yaml-too-large", line, f"it unfolds to more than {MAX_NODES} values", fix)
            raise _TooMuch
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return self.mapping(loader, node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            items = enumerate(node.value)
            return [self.value(loader, item, (*path, i), item.start_mark.line + 1) for i, item in items]
        return self.scalar(loader, node, line)

    def mapping(self, loader: Any, node: yaml.MappingNode, path: tuple[str | int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line, spot = key_node.start_mark.line + 1, (*path, key_node.value)
            if key_node.tag == TAG + "merge":
                self.wrong("yaml-merge", line, "merge keys (<<) are not read here", "write the keys out")
            elif key_node.tag != TAG + "str":
                said = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                fix = (
                    f'put it in quotes: "{said}"' if isinstance(key_node, yaml.ScalarNode) else "use a text as the key"
                )
                self.wrong("yaml-key", line, f"the key {said} is not read as text by YAML", fix)
            elif key_node.value in result:
                first = self.lines[spot]
                what = f"the key {key_node.value} stands here a second time, after line {first}"
                self.wrong("yaml-duplicate-key", line, what, "keep one of the two")
            else:
                result[key_node.value] = self.value(loader, value_node, spot, line)
        return result

    def scalar(self, loader: Any, node: yaml.Node, line: int) -> Any:
        if not isinstance(node, yaml.ScalarNode) or node.tag not in SCALARS:
            tag = node.tag.replace(TAG, "!!")
            self.wrong(
                "yaml-tag", line, f"the tag {tag} is not read here", "write a plain text, number, list or mapping"
            )
            return None
        try:
            return loader.construct_object(node)
        except ValueError as error:
            self.wrong("yaml-value", line, f"{node.value}: {error}", "correct it, or put it in quotes to mean the text")
            return None


def _read_text(path: Path) -> str:
    where = shown(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            what = f"the file is larger than {MAX_BYTES >> 20} MiB"
            raise ConfError(
                Problem("yaml-too-large", where, what, "a conf file is written by hand: is this the right file?")
            )
        return content.decode("utf-8-sig")
    except OSError as error:
        fix = "check the path and the permissions"
        raise ConfError(Problem("file-unreadable", where, f"cannot be read: {error.strerror}", fix)) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfError(
            Problem("yaml-syntax", f"{where}:{line}", "this is not UTF-8", "save the file as UTF-8")
        ) from error


def load_yaml(path: Path) -> tuple[Any, Lines]:
    """The file's value, and the 1-based line of every node by its path; ConfError with all that is wrong."""
    reader = _Reader(shown(path))
    value = reader.read(_read_text(path))
    if reader.problems:
        raise ConfError(*reader.problems)
    return value, reader.lines


def parse_value(text: str, where: str) -> Any:
    """One value as YAML, as in DRIVETRAIN_ variables and --set."""
    reader = _Reader(where, numbered=False)
    value = reader.read(text)
    if reader.problems:
        raise ConfError(*reader.problems)
    return value


# --- Layers -------------------------------------------------------------------------------------------------------


class _Layers:
    """Lays one value over another, key by key, and keeps count of origins and problems."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origin: dict[tuple[str, ...], str] = {}
        self.problems: list[Problem] = []

    def put(self, path: tuple[str, ...], value: Any, origin: str | tuple[str, Lines]) -> None:
        """Sets one leaf or merges one mapping; ``origin`` is a name, or a file's name with the lines of its values."""
        where = origin if isinstance(origin, str) else f"{origin[0]}:{origin[1].get(path, 1)}"
        if path == ("spark",) and value is not None and not isinstance(value, dict):
            self.wrong(
                "spark-block",
                where,
                "spark must be a mapping of Spark keys to values",
                "spark: {spark.ui.enabled: false}",
            )
        elif len(path) == 2 and path[0] == "spark" and self.spark_wrong(path[1], value, where):
            pass
        elif isinstance(value, dict) and (value or not path):
            for key, inner in value.items():
                self.put((*path, key), inner, origin)
        else:
            self.set(path, value, where)

    def set(self, path: tuple[str, ...], value: Any, where: str) -> None:
        holder = self.values
        for depth, key in enumerate(path[:-1], start=1):
            self.origin.pop(path[:depth], None)
            if not isinstance(holder.get(key), dict):
                holder[key] = {}
            holder = holder[key]
        if isinstance(value, dict) and isinstance(holder.get(path[-1]), dict):
            return  # an empty mapping over a filled one changes nothing
        for old in [known for known in self.origin if known[: len(path)] == path]:
            del self.origin[old]
        holder[path[-1]] = value
        self.origin[path] = where

    def spark_wrong(self, key: str, value: Any, where: str) -> bool:
        if not key.startswith("spark.") or key.endswith(".") or re.search(r"\s", key):
            hint = f"spark.{key}" if where.startswith("--set") else f"spark.hadoop.{key}"
            what = f"{key} is not a Spark key: below spark: each key starts with spark."
            fix = f"--set spark.{hint}=…" if where.startswith("--set") else f"for Hadoop's own settings write {hint}"
            self.wrong("spark-key", where, what, fix)
            return True
        if value is not None and not isinstance(value, str | int | float):
            what = f"{key} must be one value, this is a {type(value).__name__}"
            self.wrong("spark-value", where, what, "write the whole key and a text or number: spark.executor.cores: 2")
            return True
        return False

    def wrong(self, code: str, where: str, what: str, fix: str) -> None:
        self.problems.append(Problem(code, where, what, fix))


def _lay_file(layers: _Layers, path: Path) -> None:
    try:
        value, lines = load_yaml(path)
    except ConfError as error:
        layers.problems.extend(error.problems)
        return
    if isinstance(value, dict):
        layers.put((), value, (shown(path), lines))
    elif value is not None:
        layers.wrong(
            "settings-shape", f"{shown(path)}:1", "settings must be a mapping", "write lines of the form key: value"
        )


def _lay_text(layers: _Layers, path: tuple[str, ...], text: str, where: str) -> None:
    if not all(path):
        layers.wrong(
            "settings-key", where, "the key has an empty part", "write key or outer.inner, as in make_feeds.days"
        )
        return
    try:
        layers.put(path, parse_value(text, where), where)
    except ConfError as error:
        layers.problems.extend(error.problems)


def _lay_variable(layers: _Layers, name: str, text: str) -> None:
    path = tuple(name.removeprefix(PREFIX).lower().split("__"))
    if path[0] == "spark" and len(path) > 1:
        what = "a Spark key, with its dots and capitals, cannot be a variable's name"
        layers.wrong(
            "settings-key", name, what, "DRIVETRAIN_SPARK='{spark.executor.cores: 2}', or --set spark.KEY=value"
        )
    else:
        _lay_text(layers, path, text, name)


def _lay_set(layers: _Layers, text: str) -> None:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        layers.wrong("settings-set", f"--set {text}", "there is no = in it", "--set key=value")
        return
    path = tuple(key.split(".", 1) if key.startswith("spark.") else key.split("."))
    _lay_text(layers, path, value, f"--set {key}")


def _env_file(layers: _Layers, conf_dir: Path, env: str) -> Path | None:
    path = conf_dir / f"{env}.yaml"
    if re.fullmatch(r"[A-Za-z0-9_-]+", env) and env != "base" and path.is_file():
        return path
    known = ", ".join(sorted(file.stem for file in conf_dir.glob("*.yaml") if file.stem != "base")) or "none"
    what = f"there is no {env}.yaml, so no environment {env} (there: {known})"
    layers.wrong("env-unknown", shown(conf_dir), what, f"name another with --env, or write {shown(path)}")
    return None


def layer(conf_dir: Path, env: str, environ: Mapping[str, str], sets: Sequence[str]) -> Layered:
    """base.yaml, ENV.yaml, the DRIVETRAIN_ variables, then --set; ConfError with everything that is wrong in them."""
    conf_dir = Path(os.path.abspath(conf_dir))
    if not conf_dir.is_dir():
        fix = "name the folder that holds base.yaml with --conf-dir"
        raise ConfError(Problem("conf-missing", shown(conf_dir), "there is no such folder", fix))
    layers = _Layers()
    env_file = _env_file(layers, conf_dir, env)
    for file in filter(None, (conf_dir / "base.yaml", env_file)):
        _lay_file(layers, file)
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in NOT_SETTINGS:
            _lay_variable(layers, name, environ[name])
    for text in sets:
        _lay_set(layers, text)
    if layers.problems:
        raise ConfError(*layers.problems)
    return Layered(layers.values, layers.origin, conf_dir.parent)


# --- Secrets ------------------------------------------------------------------------------------------------------


def resolve_secret(reference: str) -> str:
    """What ``env:NAME`` or ``file:PATH`` stands for; any other text stands for itself."""
    kind, colon, name = reference.partition(":")
    if not colon or kind not in ("env", "file"):
        return reference
    if kind == "env":
        if name in os.environ:
            return os.environ[name]
        what = f"the environment variable {name} is not set"
        raise DrivetrainError(
            Problem("secret-missing", reference, what, f"set it in the calling shell: export {name}=…")
        )
    try:
        return Path(name).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        what, fix = (
            f"the secret's file cannot be read: {reason}",
            f"check the path and permissions of {os.path.abspath(name)}",
        )
        raise DrivetrainError(Problem("secret-missing", reference, what, fix)) from error
