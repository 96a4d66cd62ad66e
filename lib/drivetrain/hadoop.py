"""HDFS and YARN from the launcher: one small Java process with Hadoop's own clients, spoken to by py4j.

The clients read HADOOP_CONF_DIR and know Kerberos, high availability and every file system that Hadoop knows.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
from py4j.protocol import Py4JError, Py4JJavaError

from drivetrain.errors import DrivetrainError, Problem
from drivetrain.files import HadoopFiles

JARS: Final = ("hadoop-client-*", "slf4j-api*", "log4j*", "jcl-over*", "commons-io*", "py4j*")
JVM: Final = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dlog4j2.level=ERROR")
LIVE: Final = ("NEW", "NEW_SAVING", "SUBMITTED", "ACCEPTED", "RUNNING")
# How long an answer is waited for before the person is told; Hadoop's own default is a quarter of an hour.
PATIENCE: Final = {
    "yarn.resourcemanager.connect.max-wait.ms": "10000",
    "yarn.resourcemanager.connect.retry-interval.ms": "2000",
    "ipc.client.connect.max.retries": "3",
    "ipc.client.connect.timeout": "10000",
}
SAFE_MODE_SECONDS: Final = 60
LOGS: Final = ("stdout", "stderr")
MOST_BYTES: Final = 1 << 40


@dataclass(frozen=True)
class Application:
    """A YARN application as the ResourceManager knows it; ``started`` in seconds since 1970."""

    id: str
    name: str
    user: str
    queue: str
    state: str
    final: str
    attempt: int
    started: float
    tags: frozenset[str]
    url: str
    diagnostics: str

    @property
    def ended(self) -> bool:
        return self.state not in LIVE


class Hadoop:
    """The clients of one cluster."""

    def __init__(self, jvm: Any, settings: Mapping[str, str]) -> None:
        self.jvm = jvm
        self.configuration = jvm.org.apache.hadoop.yarn.conf.YarnConfiguration()
        for key, value in {**PATIENCE, **_hadoop_settings(settings)}.items():
            self.configuration.set(key, value)
        self.files = HadoopFiles(jvm, self.configuration)
        self._log_in(settings.get("spark.kerberos.principal"), settings.get("spark.kerberos.keytab"))
        self._yarn: Any = None

    def _log_in(self, principal: str | None, keytab: str | None) -> None:
        user = self.jvm.org.apache.hadoop.security.UserGroupInformation
        user.setConfiguration(self.configuration)
        if principal and keytab:
            with _asked("kerberos", principal, "check spark.kerberos.principal and spark.kerberos.keytab"):
                user.loginUserFromKeytab(principal, keytab)

    @property
    def user(self) -> str:
        return str(self.jvm.org.apache.hadoop.security.UserGroupInformation.getCurrentUser().getShortUserName())

    # --- HDFS ---

    def home(self) -> str:
        """The user's folder on the cluster's file system."""
        with self._files():
            return str(self._system().getHomeDirectory().toString())

    def qualified(self, path: str) -> str:
        """The path with the scheme and host that it stands for."""
        made = self.jvm.org.apache.hadoop.fs.Path(path)
        with self._files():
            return str(made.getFileSystem(self.configuration).makeQualified(made).toString())

    def await_writable(self, seconds: float = SAFE_MODE_SECONDS) -> None:
        """Wait while HDFS is in safe mode.

        Raises:
            DrivetrainError: it still is after that time, or does not answer.
        """
        deadline, said, where = time.monotonic() + seconds, False, str(self.configuration.get("fs.defaultFS"))
        with self._files():
            system = self._system()
            while system.getUri().getScheme() == "hdfs" and system.isInSafeMode():
                if time.monotonic() > deadline:
                    what = f"HDFS has been in safe mode for more than {seconds:g} s: it takes no writes"
                    fix = "see `hdfs dfsadmin -report` for what it waits for; `hdfs dfsadmin -safemode leave` ends it"
                    raise DrivetrainError(Problem("hdfs-safe-mode", where, what, fix))
                if not said:
                    print(f"HDFS is in safe mode; waiting up to {seconds:g} s", file=sys.stderr, flush=True)
                    said = True
                time.sleep(1)

    def _files(self) -> AbstractContextManager[None]:
        where = str(self.configuration.get("fs.defaultFS"))
        return _asked("hdfs", where, "is the NameNode up? see its log, and HADOOP_CONF_DIR")

    def _system(self) -> Any:
        return self.jvm.org.apache.hadoop.fs.FileSystem.get(self.configuration)

    # --- YARN ---

    @property
    def yarn(self) -> Any:
        if self._yarn is None:
            client = self.jvm.org.apache.hadoop.yarn.client.api.YarnClient.createYarnClient()
            client.init(self.configuration)
            client.start()
            self._yarn = client
        return self._yarn

    def applications(self, *tags: str, states: Sequence[str] = ()) -> list[Application]:
        """Those that have one of the tags, newest first."""
        request = self.jvm.org.apache.hadoop.yarn.api.protocolrecords.GetApplicationsRequest.newInstance()
        request.setApplicationTags(self._set(self.jvm.java.util.HashSet(), tags))
        if states:
            kind = self.jvm.org.apache.hadoop.yarn.api.records.YarnApplicationState
            empty = self.jvm.java.util.EnumSet.noneOf(kind.NEW.getDeclaringClass())
            request.setApplicationStates(self._set(empty, [kind.valueOf(state) for state in states]))
        with self._manager():
            found = [self._application(report) for report in self.yarn.getApplications(request)]
        return sorted(found, key=lambda app: app.started, reverse=True)

    def application(self, id_: str) -> Application:
        with self._manager():
            return self._application(self.yarn.getApplicationReport(self._id(id_)))

    def kill(self, id_: str) -> None:
        with self._manager():
            self.yarn.killApplication(self._id(id_))

    def driver_logs(self, app: Application) -> dict[str, str]:
        """stdout and stderr of the last attempt's first container, in which a cluster-mode driver runs; what cannot be
        had yet is not there. Of an application that runs they come from its node, else from YARN's aggregated logs."""
        with self._manager():
            report = self.yarn.getApplicationReport(self._id(app.id))
            attempt = self.yarn.getApplicationAttemptReport(report.getCurrentApplicationAttemptId())
            container = attempt.getAMContainerId()
            if container is None:
                return {}
            if app.ended:
                return self._aggregated(app, str(container))
            node = str(self.yarn.getContainerReport(container).getNodeHttpAddress())
        return _served(node if "//" in node else f"http://{node}", str(container))

    def _aggregated(self, app: Application, container: str) -> dict[str, str]:
        aggregation = self.jvm.org.apache.hadoop.yarn.logaggregation
        request, reader = aggregation.ContainerLogsRequest(), aggregation.LogCLIHelpers()
        request.setAppId(self._id(app.id))
        request.setAppOwner(app.user)
        request.setLogTypes(self._set(self.jvm.java.util.HashSet(), LOGS))
        request.setBytes(MOST_BYTES)
        reader.setConf(self.configuration)
        with tempfile.TemporaryDirectory(prefix="drivetrain-") as folder:
            request.setOutputLocalDir(folder)
            try:
                reader.dumpAllContainersLogs(request)
            except Py4JJavaError:  # a NullPointerException, where nothing has been collected yet
                return {}
            texts = [file.read_text("utf-8", "replace") for file in Path(folder).glob(f"*/{container}")]
        return {kind: text for whole in texts for kind, text in sections(whole)}

    def check_queue(self, queue: str) -> str | None:
        """What a person should know of a queue before a job goes there; None where it has room.

        Raises:
            DrivetrainError: there is no such queue, or it takes no applications.
        """
        with self._manager():
            known = {str(info.getQueueName()).removeprefix("root."): info for info in self.yarn.getAllQueues()}
        wanted = queue.removeprefix("root.")
        info = known.get(wanted) or known.get(wanted.rsplit(".", 1)[-1])  # some schedulers name leaves only
        if info is None:
            fix = f"name one of {', '.join(sorted(known))}: --set spark.spark.yarn.queue=…, or queues in conf"
            raise DrivetrainError(Problem("queue-unknown", queue, "YARN has no such queue", fix))
        if str(info.getQueueState()) != "RUNNING":
            what = f"the queue is {str(info.getQueueState()).lower()}: it takes no applications"
            raise DrivetrainError(Problem("queue-stopped", queue, what, "name another, or ask who runs the cluster"))
        used, most = info.getCurrentCapacity(), info.getMaximumCapacity() / max(info.getCapacity(), 1e-6)
        return f"queue {queue} is full: the job waits there until others end" if used >= 0.99 * most else None

    def _manager(self) -> AbstractContextManager[None]:
        where = str(self.configuration.get("yarn.resourcemanager.address"))
        return _asked("resourcemanager", where, "is the ResourceManager up? see its log, and HADOOP_CONF_DIR")

    def _id(self, text: str) -> Any:
        return self.jvm.org.apache.hadoop.yarn.api.records.ApplicationId.fromString(text)

    def _set(self, empty: Any, values: Sequence[Any]) -> Any:
        for value in values:
            empty.add(value)
        return empty

    def _application(self, report: Any) -> Application:
        return Application(
            id=str(report.getApplicationId()), name=str(report.getName()), user=str(report.getUser()),
            queue=str(report.getQueue()), state=str(report.getYarnApplicationState()),
            final=str(report.getFinalApplicationStatus()),
            attempt=report.getCurrentApplicationAttemptId().getAttemptId(),
            started=report.getStartTime() / 1000, tags=frozenset(map(str, report.getApplicationTags())),
            url=str(report.getTrackingUrl() or ""), diagnostics=str(report.getDiagnostics() or "").strip(),
        )  # fmt: skip


def class_path(spark_jars: Path) -> str:
    conf = os.environ.get("HADOOP_CONF_DIR") or os.environ.get("YARN_CONF_DIR") or ""
    return ":".join([conf, *[str(jar) for pattern in JARS for jar in sorted(spark_jars.glob(f"{pattern}.jar"))]])


def java() -> str:
    return f"{os.environ['JAVA_HOME']}/bin/java" if os.environ.get("JAVA_HOME") else "java"


@contextmanager
def connected(spark_jars: Path, settings: Mapping[str, str]) -> Iterator[Hadoop]:
    """The cluster that HADOOP_CONF_DIR describes; ``settings`` are Spark's, of which Hadoop's own and Kerberos' count.

    Raises:
        DrivetrainError: no configuration is named.
    """
    if not (os.environ.get("HADOOP_CONF_DIR") or os.environ.get("YARN_CONF_DIR")):
        what = "neither HADOOP_CONF_DIR nor YARN_CONF_DIR is set, so there is no telling where the cluster is"
        raise DrivetrainError(Problem("hadoop-conf", "environment", what, "export HADOOP_CONF_DIR=/etc/hadoop/conf"))
    try:
        port, token = launch_gateway(
            classpath=class_path(spark_jars), jarpath=str(next(spark_jars.glob("py4j*.jar"))), java_path=java(),
            javaopts=list(JVM), die_on_exit=True, enable_auth=True, redirect_stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        what = f"Hadoop's client cannot be started: {error}"
        raise DrivetrainError(Problem("java", java(), what, "does it run? try it with -version")) from None
    gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port, auth_token=token, auto_convert=True))
    try:
        yield Hadoop(gateway.jvm, settings)
    finally:
        gateway.shutdown()


def sections(text: str) -> list[tuple[str, str]]:
    """(log, its text) of each log that YARN has put into one file of a container."""
    return re.findall(r"^LogType:(\S+)\n.*?^LogContents:\n(.*?)\n?^End of LogType:\1", text, re.DOTALL | re.MULTILINE)


def _served(node: str, container: str) -> dict[str, str]:
    """The logs as the node itself serves them."""
    found: dict[str, str] = {}
    for log in LOGS:
        address = f"{node}/ws/v1/node/containers/{container}/logs/{log}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                whole = answer.read().decode("utf-8", "replace")
        except OSError as error:
            print(f"{log} cannot be read from {address}: {error}", file=sys.stderr)
            continue
        found |= dict(sections(whole)) or {log: whole}
    return found


@contextmanager
def _asked(code: str, where: str, fix: str) -> Iterator[None]:
    """Java's errors as a problem of the service that was asked."""
    try:
        yield
    except (Py4JJavaError, Py4JError) as error:
        cause = getattr(error, "java_exception", None)
        said = str(cause.getMessage() or cause.toString()) if cause else str(error)
        raise DrivetrainError(Problem(code, where, said.strip().split("\n")[0][:400], fix)) from None


def _hadoop_settings(settings: Mapping[str, str]) -> dict[str, str]:
    prefix = "spark.hadoop."
    return {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
