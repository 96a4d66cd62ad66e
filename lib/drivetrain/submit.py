"""A job on YARN: what nodes need is staged on HDFS once, a job that runs already is not started again, and anyone may
ask after it from any machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

from drivetrain import conf as conf_reader
from drivetrain import hadoop, history, launch, package
from drivetrain.contracts import ROOT
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.files import is_remote
from drivetrain.hadoop import LIVE, Application, Hadoop
from drivetrain.launch import Call
from drivetrain.settings import NOT_SETTINGS, PREFIX

ASKING: Final = ("plan", "sql")  # jobs that write nothing: each call is one of its own
OURS: Final = "drivetrain"
UNUSED_SECONDS: Final = 7 * 86_400  # a staged archive that nobody has asked for in this time may go
POLL_SECONDS: Final = 1.0
INTERRUPTED: Final = 130
COLLECTED_SECONDS: Final = 30.0
AWAY_SECONDS: Final = 600.0
NODE_LOG4J: Final = "-Dlog4j2.configurationFile=app/conf/log4j2.properties"


@dataclass(frozen=True)
class Work:
    """What is asked of the cluster: a job over one warehouse; ``exactly`` says with which arguments, settings, code and
    conf."""

    job: str
    exactly: str
    warehouse: str

    @property
    def tag(self) -> str:
        """Tells this job over this warehouse from all others."""
        return f"{OURS}-{_digest(self.warehouse)}-{self.job}"

    @property
    def exact_tag(self) -> str:
        """As ``tag``, of this very work: another conf is other work."""
        return f"{self.tag}-{_digest(self.exactly)}"


class Staged(NamedTuple):
    """Where the archives stand on the cluster's file system."""

    environment: str
    application: str
    spark: str
    pyspark: str


# --- Staging ------------------------------------------------------------------------------------------------------


def staged(cluster: Hadoop, call: Call, archives: package.Archives, values: Mapping[str, Any]) -> Staged:
    """Where nodes find the archives, which are put there if they are not yet; with --print nothing is put."""
    folder = str(values.get("staging") or f"{cluster.home()}/.{OURS}")
    if not call.show:
        cluster.await_writable()
        stage(cluster, folder, archives)
    return Staged(*[f"{folder}/{archive.name}" for archive in archives])


def stage(cluster: Hadoop, folder: str, archives: Sequence[Path]) -> None:
    """Put the archives where nodes fetch them, those that are not there yet; take away what nobody uses.

    Raises:
        DrivetrainError: the folder cannot be written.
    """
    places = [f"{folder}/{archive.name}" for archive in archives]
    try:
        for archive, place in zip(archives, places, strict=True):
            if not cluster.files.find(place):
                size = archive.stat().st_size / 2**20
                print(f"staging {archive.name}, {size:,.0f} MB, in {folder} (once) …", file=sys.stderr, flush=True)
                cluster.files.put(archive, place, replace=False)
            _touch(cluster, f"{place}.used")
        for old in unused(cluster, folder, places):
            cluster.files.remove(old)
            cluster.files.remove(f"{old}.used")
    except OSError as error:
        fix = "name a folder of yours on the cluster's file system: --set staging=hdfs:///…"
        raise DrivetrainError(Problem("staging", folder, f"it cannot be written: {error.strerror}", fix)) from None


def unused(cluster: Hadoop, folder: str, wanted: Sequence[str]) -> list[str]:
    """Archives that are neither wanted, nor asked for lately, nor those of an application that lives."""
    tags = {tag for app in cluster.applications(OURS, states=LIVE) for tag in app.tags}
    found = {file.path: file for file in cluster.files.walk(folder)}
    oldest = (time.time() - UNUSED_SECONDS) * 1e9
    current = set(map(cluster.qualified, wanted))
    archives = [path for path in found if not path.endswith(".used") and path not in current]
    return [
        path
        for path in archives
        if use_tag(path) not in tags and found.get(f"{path}.used", found[path]).modified < oldest
    ]


def use_tag(place: str) -> str:
    """The tag by which an application says that it uses an archive."""
    return f"{OURS}-uses-{place.rsplit('/', 1)[-1].split('.')[0]}"


def _touch(cluster: Hadoop, place: str) -> None:
    # The archive's own time must stay: YARN refuses a resource whose time is not the one that was submitted.
    with tempfile.NamedTemporaryFile() as empty:
        cluster.files.put(Path(empty.name), place)


# --- Spark's settings ---------------------------------------------------------------------------------------------


def yarn_settings(
    settings: Mapping[str, str],
    job: str,
    places: Staged,
    tags: Sequence[str],
    queue: str,
    mode: str,
    home: Path,
    java: bool,
) -> dict[str, str]:
    """The site's settings with those by which Spark on YARN uses what is staged; a list that both have is joined.
    ``java`` tells whether the environment brings a Java runtime."""
    made = {
        "spark.app.name": f"{OURS} {job}",
        "spark.submit.deployMode": mode,
        "spark.yarn.archive": places.spark,
        "spark.pyspark.python": "./env/bin/python",
        "spark.yarn.queue": queue,
    }
    lists = {
        "spark.yarn.dist.archives": (",", f"{places.environment}#env,{places.application}#app"),
        "spark.yarn.tags": (",", ",".join(tags)),
        "spark.executor.extraJavaOptions": (" ", NODE_LOG4J),
    }
    for side in ("spark.yarn.appMasterEnv", "spark.executorEnv"):
        lists[f"{side}.PYTHONPATH"] = (":", "./app/lib")
        if java:
            made[f"{side}.JAVA_HOME"] = "./env/java"
    if mode == "cluster":
        made |= {"spark.pyspark.driver.python": "./env/bin/python", "spark.yarn.submit.waitAppCompletion": "false"}
    else:
        made["spark.pyspark.driver.python"] = sys.executable
        lists["spark.driver.extraClassPath"] = (":", f"{home}/jars/*")
    joined = {key: between.join(filter(None, [ours, settings.get(key)])) for key, (between, ours) in lists.items()}
    return {**settings, **made, **joined}


def in_time(cluster: Hadoop, call: Call, values: Mapping[str, Any], settings: Mapping[str, str]) -> dict[str, str]:
    """The settings with the executors and the memory that the job's deadline takes, where it has one and earlier runs
    tell; what this call sets goes before, and the bounds of conf stand.

    Raises:
        DrivetrainError: the deadline is no number of minutes.
    """
    deadlines = values.get("deadline_minutes") or {}
    minutes = deadlines.get(call.job) if isinstance(deadlines, dict) else deadlines
    if minutes is None or values.get("tune") is False:
        return dict(settings)
    if not isinstance(deadlines, dict) or not isinstance(minutes, int | float) or not 0 < minutes < float("inf"):
        fix = f"write the number alone: deadline_minutes: {{{call.job}: 30}}"
        raise DrivetrainError(Problem("deadline", "deadline_minutes", f"{minutes!r} are no minutes of a job", fix))
    from drivetrain import deadline  # which fits models: a call without a deadline need not wait for that

    try:
        told = history.read(cluster.files, f"{values['warehouse']}/ops/steps")
    except OSError as error:
        print(f"what earlier runs of {call.job} took cannot be read: {error.strerror}", file=sys.stderr)
        return dict(settings)
    by_hand = settings.get(launch.BY_HAND, "").split(",")
    made = [one for one in deadline.decide(told, call.job, minutes, settings) if one.setting not in by_hand]
    for one in made:
        print(f"{one.setting}={one.value}: {one.because}", file=sys.stderr)
    if call.job not in told.jobs:
        print(f"no run of {call.job} tells yet what it takes: conf's executors stand", file=sys.stderr)
    return {**settings, **{one.setting: one.value for one in made}}


def sets_of(call: Call, environ: Mapping[str, str]) -> list[str]:
    """--set for a driver on a node, which does not see the caller's DRIVETRAIN_ variables. Spark's settings go by its
    own file, for they may hold secrets, and a command line is for everybody."""
    named = sorted(name for name in environ if name.startswith(PREFIX) and name not in NOT_SETTINGS)
    keys = {name: name.removeprefix(PREFIX).lower().replace("__", ".") for name in named}
    every = [*[f"{keys[name]}={environ[name]}" for name in named], *call.sets]
    return [text for text in every if text.split("=")[0].split(".")[0] != "spark"]


# --- Running ------------------------------------------------------------------------------------------------------


def run(call: Call, job: Path, root: Path, home: Path, values: Mapping[str, Any]) -> int:
    """Submit the job, attach to it where it runs already, or ask after it. Returns the exit code."""
    spark = values.get("spark") or {}
    mode = call.mode or str(spark.get("spark.submit.deployMode") or "client")
    settings = launch.properties(spark, NODE_LOG4J if mode == "cluster" else launch.java_options(call, root, home))
    check_places(values)
    if mode == "cluster" and not call.verb:
        conf_reader.load(call.conf_dir, call.env, sets=call.sets)  # all its errors now, not on a node
    try:
        with hadoop.connected(launch.spark_home() / "jars", settings) as cluster:
            warehouse = cluster.qualified(str(values["warehouse"]))
            if call.verb:
                return ask(call.verb, Work(call.job, "", warehouse), cluster)
            java = bool(values.get("package_java", True))
            archives = package.build(root, home, call.conf_dir, java=java)
            sets = sets_of(call, os.environ)
            work = Work(call.job, json.dumps([call.rest, sets, archives.application.name]), warehouse)
            running = [] if call.job in ASKING or call.show else cluster.applications(work.exact_tag, states=LIVE)
            if running:
                print(f"{call.job} runs already, as {running[0].id}: waiting for that", file=sys.stderr)
                return finish(cluster, running[0])
            queue = settings.get("spark.yarn.queue") or (values.get("queues") or {}).get(call.job, "default")
            if note := None if call.show else cluster.check_queue(queue):
                print(note, file=sys.stderr)
            places = staged(cluster, call, archives, values)
            mine = f"{OURS}-call-{uuid4().hex[:12]}"
            tags = (OURS, work.tag, work.exact_tag, mine, *map(use_tag, places))
            settings = in_time(cluster, call, values, settings)
            settings = yarn_settings(settings, call.job, places, tags, queue, mode, home, java)
            conf_dir, told = (call.conf_dir, call.sets) if mode == "client" else (None, sets)
            full = launch.command(job, home, settings, launch.job_words(call, conf_dir, told))
            set_environment(places)
            if mode == "cluster" and not call.show:
                return submitted(cluster, full, mine)
    except KeyboardInterrupt:
        print(f"\nwhat YARN has been given runs on: status, logs, wait and kill {call.job} tell of it", file=sys.stderr)
        return INTERRUPTED
    launch.start(call, full)


def check_places(values: Mapping[str, Any]) -> None:
    """Raises DrivetrainError where tables or feeds have no scheme: Spark would look for them on HDFS, and we here."""
    wrong = {name: str(values.get(name)) for name in ("warehouse", "landing") if not is_remote(str(values.get(name)))}
    if wrong:
        fix = "write hdfs:///… or viewfs://… in yarn.yaml, or with --set"
        raise DrivetrainError(*[
            Problem("not-on-cluster", name, f"{place!r} is no place that all nodes see", fix)
            for name, place in wrong.items()
        ])  # fmt: skip


def set_environment(places: Staged) -> None:
    """What spark-submit reads of its environment."""
    os.environ["PYSPARK_ARCHIVES_PATH"] = places.pyspark  # else spark-submit uploads its own
    for name in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"):  # the caller's, which no node has
        os.environ.pop(name, None)


def submitted(cluster: Hadoop, full: Sequence[str], tag: str) -> int:
    """Hand the job to YARN, and stay with it to its end."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # it would reach the nodes
    options = f"-Dlog4j2.configurationFile={(ROOT / 'conf' / 'log4j2.properties').as_uri()}"
    done = subprocess.run(full, env={**environ, "SPARK_SUBMIT_OPTS": options}, stdin=subprocess.DEVNULL)
    found = cluster.applications(tag)
    if done.returncode:
        return done.returncode
    if not found:
        what = "spark-submit ended well, but YARN knows of no such application"
        raise DrivetrainError(Problem("no-application", tag, what, "is HADOOP_CONF_DIR that of the same cluster?"))
    return finish(cluster, found[0])


def finish(cluster: Hadoop, app: Application) -> int:
    """Wait for the application; then what its driver wrote, where that was on a node."""
    ended = follow(cluster, app)
    print_driver(cluster, ended, COLLECTED_SECONDS)
    return code(ended)


def follow(cluster: Hadoop, app: Application) -> Application:
    """Wait until the application ends; say how it does when that changes. A ResourceManager that is away, as when it is
    started again, is waited for."""
    said, last_heard = "", time.monotonic()
    while True:
        now = f"{app.id} {app.state.lower()} in queue {app.queue}, attempt {max(app.attempt, 1)}"
        if now != said:
            print(f"{datetime.now():%H:%M:%S} {now}", file=sys.stderr, flush=True)
            said = now
        if app.ended:
            return app
        time.sleep(POLL_SECONDS)
        try:
            app, last_heard = cluster.application(app.id), time.monotonic()
        except DrivetrainError as error:
            if time.monotonic() - last_heard > AWAY_SECONDS:
                raise
            print(f"{datetime.now():%H:%M:%S} waiting on: {error.problems[0].what}", file=sys.stderr, flush=True)


def code(app: Application) -> int:
    """The exit code that tells how an application ended; what it said of a failure goes to stderr."""
    if app.final == "SUCCEEDED":
        return 0
    print(f"✗ {app.id} ended {app.final}: {app.diagnostics[:2000]}", file=sys.stderr)
    return 1


def print_driver(cluster: Hadoop, app: Application, seconds: float) -> None:
    """What the driver of a cluster-mode job has written: data on stdout, talk on stderr. YARN collects the logs of an
    application that has just ended within seconds."""
    deadline = time.monotonic() + seconds
    logs: dict[str, str] = {}
    with suppress(DrivetrainError):  # how the job ended does not hang on what it said
        while not (logs := cluster.driver_logs(app)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    for log, stream in (("stderr", sys.stderr), ("stdout", sys.stdout)):
        stream.write(logs.get(log, ""))
        stream.flush()
    if not logs:
        print(f"YARN has no logs of {app.id}; is log aggregation on? see {app.url}", file=sys.stderr)


def ask(verb: str, work: Work, cluster: Hadoop) -> int:
    """status, logs, wait or kill. Returns the exit code."""
    found = cluster.applications(work.tag)
    if not found:
        what = f"YARN knows of no {work.job} over {work.warehouse}"
        raise DrivetrainError(Problem("no-application", work.job, what, "start it, or check --env and --set warehouse"))
    newest = next((app for app in found if not app.ended), found[0])
    if verb == "status":
        for app in found[:10]:
            began = datetime.fromtimestamp(app.started)
            print(
                f"{app.id}  {began:%Y-%m-%d %H:%M:%S}  {app.state:9}  {app.final:9}  {app.queue}  {app.user}  {app.url}"
            )
        return 0
    if verb == "kill":
        if not newest.ended:
            cluster.kill(newest.id)
        return 0 if newest.ended else _said(follow(cluster, newest))
    if verb == "wait":
        return code(follow(cluster, newest))
    print_driver(cluster, newest, 0)
    return 0


def _said(app: Application) -> int:
    print(f"{app.id} is {app.state.lower()}", file=sys.stderr)
    return 0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
