"""From ``JOB --env local …`` to a spark-submit that runs it. It is on every call, so its imports are few."""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from drivetrain import streams
from drivetrain.errors import DrivetrainError, Problem

ROOT = Path(__file__).resolve().parents[2]
# What spark-submit is given.
ENVIRONMENT = ("PYTHONPATH", "PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "PYSPARK_ARCHIVES_PATH", "SPARK_HOME")
KEEP_SECONDS = 86_400  # Spark has read its properties file seconds after the start
SECRET_KEY = re.compile(r"secret|password|passphrase|token|credential|key(?!tab|store)", re.IGNORECASE)

KEY, VALUE = r"[A-Za-z0-9_.-]", r"[ -\[\]-~]"  # what a properties file may hold unescaped; the rest becomes \uXXXX
BY_HAND = "spark.drivetrain.byHand"
OF_THIS_CALL = ("--set ", "DRIVETRAIN_")  # where such settings come from
USAGE = "./spark-submit.sh JOB [--env NAME] [--conf-dir DIR] [--set KEY=VALUE …] [--print] [the job's own arguments]"
VERBS = {
    "status": "how JOB does, or did last, on YARN",
    "logs": "what it has written",
    "wait": "waits until it ends, and ends as it does",
    "kill": "ends it",
}
HELP = f"""Runs a job of Drivetrain with spark-submit; the first call prepares everything it needs.

usage: {USAGE}
       ./spark-submit.sh {"|".join(VERBS)} JOB [the same options]

  --env NAME        which environment's settings are laid over base.yaml: local (default) or yarn
  --conf-dir DIR    the folder of the pipeline (default: conf, beside this script)
  --set KEY=VALUE   sets one setting, as often as you like: --set spark.spark.sql.shuffle.partitions=8
  --deploy-mode M   on YARN: client (default), or cluster, where the driver runs on a node too
  --print           shows the spark-submit command and starts nothing
  --help            shows this; JOB --help shows the job's own arguments

jobs:
"""


@dataclass(frozen=True)
class Call:
    """What the command line asks for."""

    job: str
    env: str
    conf_dir: Path
    sets: list[str] = field(default_factory=list)
    mode: str | None = None
    show: bool = False
    verb: str | None = None
    rest: list[str] = field(default_factory=list)


# --- Jobs ---------------------------------------------------------------------------------------------------------


def job_files(root: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((root / "jobs").glob("*.py")) if not path.stem.startswith("_")}


def summary(job: Path) -> str:
    """The first line of what a job says about itself, without running it."""
    try:
        doc = ast.get_docstring(ast.parse(job.read_bytes()))
    except (SyntaxError, ValueError) as error:
        return f"(cannot be read: {error})"
    return (doc or "").split("\n")[0]


def help_text(root: Path) -> str:
    jobs = job_files(root)
    width = max(map(len, jobs), default=0)
    listed = "\n".join(f"  {name:{width}}  {summary(path)}" for name, path in jobs.items()) or "  (none)"
    verbs = "\n".join(f"  {verb:{width}}  {what}" for verb, what in VERBS.items())
    return f"{HELP}{listed}\n\nof a job on YARN, from any machine:\n{verbs}"


def find_job(root: Path, name: str) -> Path:
    jobs = job_files(root)
    if name in jobs:
        return jobs[name]
    near = difflib.get_close_matches(name, jobs, n=1, cutoff=0.4)
    fix = f"did you mean {near[0]}? --help lists the jobs" if near else "--help lists the jobs"
    raise DrivetrainError(Problem("job-unknown", f"job {name}", f"there is no jobs/{name}.py", fix))


def parse(words: Sequence[str], root: Path) -> Call:
    """Our own options may stand anywhere before a ``--``; everything else is the job's."""
    parser = argparse.ArgumentParser("spark-submit.sh", usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("--env")
    parser.add_argument("--deploy-mode", choices=("client", "cluster"), dest="mode")
    parser.add_argument("--conf-dir", type=Path, default=root / "conf")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--print", action="store_true", dest="show")
    own, after = list(words), []
    if "--" in own:
        cut = own.index("--")
        own, after = own[:cut], own[cut + 1 :]
    options, rest = parser.parse_known_args(own)
    if not rest or rest[0].startswith("-"):
        parser.error(f"the first word must be a job; there are: {', '.join(job_files(root)) or 'none'}")
    verb = rest.pop(0) if rest[0] in VERBS else None
    if verb and not rest:
        parser.error(f"{verb} of which job? there are: {', '.join(job_files(root))}")
    conf_dir, env = Path(os.path.abspath(options.conf_dir)), options.env or ("yarn" if verb else "local")
    return Call(rest[0], env, conf_dir, options.sets, options.mode, options.show, verb, rest[1:] + after)


# --- Spark's properties -------------------------------------------------------------------------------------------


def java_options(call: Call, root: Path, home: Path) -> str:
    own_log4j = call.conf_dir / "log4j2.properties"
    log4j = own_log4j if own_log4j.is_file() else root / "conf" / "log4j2.properties"
    options = (
        f"-Dlog4j2.configurationFile={log4j.as_uri()}",
        f"-Dderby.stream.error.file={home / 'run' / 'derby.log'}",
    )
    return " ".join('"' + option.replace("\\", "\\\\").replace('"', '\\"') + '"' for option in options)


def spark_text(key: str, value: Any) -> str:
    """A value as Spark reads it. ``file:`` is a secret's place only where a secret is due: elsewhere it is a URI."""
    from drivetrain.settings import resolve_secret

    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    return resolve_secret(text) if text.startswith("env:") or SECRET_KEY.search(key) else text


def properties(spark: Mapping[str, Any], java: str) -> dict[str, str]:
    """Spark's settings as text; null takes a setting out, so that Spark's own default holds."""
    problems: list[Problem] = []
    result: dict[str, str] = {}
    for key, value in spark.items():
        if value is None:
            continue
        try:
            result[key] = spark_text(key, value)
        except DrivetrainError as error:
            problems.extend(error.problems)
    if problems:
        raise DrivetrainError(*problems)
    options = "spark.driver.extraJavaOptions"
    return {**result, options: f"{java} {result[options]}" if options in result else java}


def with_hands(spark: Mapping[str, Any], origin: Mapping[tuple[str, ...], str]) -> dict[str, Any]:
    """Spark's settings, and which of them are of this call: tuning leaves those alone, wherever the driver runs."""
    ours = [path[1:] for path, where in origin.items() if path[0] == "spark" and where.startswith(OF_THIS_CALL)]
    named = sorted(key for keys in ours for key in keys)
    return {**spark, BY_HAND: ",".join(named)} if named else dict(spark)


def render(settings: Mapping[str, str]) -> str:
    """A Java properties file in ASCII, sorted so that the same settings make the same file."""

    def escape(text: str, plain: str) -> str:
        units = ((char, char.encode("utf-16-be").hex(" ", 2).split()) for char in text)
        return "".join(
            char if re.match(plain, char) else "".join(f"\\u{unit}" for unit in hexes) for char, hexes in units
        )

    return "".join(f"{escape(key, KEY)}={escape(value, VALUE)}\n" for key, value in sorted(settings.items()))


def write_properties(folder: Path, text: str) -> Path:
    """Readable for its owner alone, since secrets stand in it; written whole or not at all."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for old in folder.glob("*.properties*"):
        if time.time() - old.stat().st_mtime > KEEP_SECONDS:
            old.unlink(missing_ok=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.properties"
    new = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    new.replace(path)
    return path


# --- The command --------------------------------------------------------------------------------------------------


def spark_home() -> Path:
    return Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages" / "pyspark"


def command(
    job: Path, home: Path, settings: Mapping[str, str], words: Sequence[str], options: Sequence[str] = ()
) -> list[str]:
    """spark-submit with the settings in a file and more ``options``; ``words`` are for the job."""
    try:
        file = write_properties(home / "run", render(settings))
    except OSError as error:
        what = f"the Spark settings cannot be written here: {error.strerror}"
        fix = "name a folder of your own in DRIVETRAIN_HOME"
        raise DrivetrainError(Problem("home-unwritable", str(home / "run"), what, fix)) from error
    every = ("--properties-file", str(file), "--load-spark-defaults", *options)
    return [str(spark_home() / "bin" / "spark-submit"), *every, str(job), *words]


def job_words(call: Call, conf_dir: Path | None, sets: Sequence[str]) -> list[str]:
    """The arguments by which the job reads the same conf; without a folder it takes the one that stands beside it."""
    folder = ["--conf-dir", str(conf_dir)] if conf_dir else []
    return ["--env", call.env, *folder, *[word for text in sets for word in ("--set", text)], *call.rest]


def run(words: Sequence[str], root: Path) -> NoReturn:
    call = parse(words, root)
    job = find_job(root, call.job)
    if {"-h", "--help"} & set(call.rest):
        os.execv(sys.executable, [sys.executable, str(job), *call.rest])
    if not (spark_home() / "bin" / "spark-submit").is_file():
        what = "the virtual environment holds no pyspark: was the Python it was made from replaced?"
        raise DrivetrainError(Problem("environment", sys.prefix, what, "delete this folder and call again"))
    from drivetrain.settings import layer

    home = Path(os.environ.get("DRIVETRAIN_HOME") or root / ".drivetrain")
    os.environ["SPARK_HOME"] = str(spark_home())
    layered = layer(call.conf_dir, call.env, os.environ, call.sets)
    spark = with_hands(layered.values.get("spark") or {}, layered.origin)
    if spark.get("spark.master") == "yarn":
        from drivetrain import submit

        raise SystemExit(submit.run(call, job, root, home, {**layered.values, "spark": spark}))
    if call.verb or call.mode:
        what = f"{call.verb or '--deploy-mode'} is for jobs on YARN, and spark.master of --env {call.env} is not yarn"
        raise DrivetrainError(Problem("not-yarn", f"--env {call.env}", what, "write --env yarn"))
    jars = ",".join(jar.as_uri() for jar in sorted((home / "jars").glob("*.jar")))  # a URI, for a path may hold a comma
    settings = properties(spark, java_options(call, root, home))
    words = job_words(call, call.conf_dir, call.sets)
    start(call, command(job, home, settings, words, ("--jars", jars)))


def start(call: Call, full: list[str]) -> NoReturn:
    """Become spark-submit, or show it."""
    if call.show:
        show(full)
        raise SystemExit(0)
    streams.offer()
    os.execv(full[0], full)


def show(full: Sequence[str]) -> None:
    given = (f"{name}={os.environ[name]}" for name in ENVIRONMENT if name in os.environ)
    print(shlex.join(["env", *given, *full]))


def main(words: Sequence[str]) -> NoReturn:
    if not words or words[0] in ("-h", "--help"):
        print(help_text(ROOT))
        raise SystemExit(0)
    try:
        run(words, ROOT)
    except DrivetrainError as error:
        print(f"drivetrain: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main(sys.argv[1:])
