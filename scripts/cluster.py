"""A cluster of real daemons on this machine's loopback: HDFS, YARN, a Hive metastore on PostgreSQL, and Kafka.

Everything lies below .drivetrain/cluster: jars, conf, data, logs, and in run/ a file for each process, by which `down`
ends its own processes only. Ports are chosen at the first start and kept, so that each checkout has its own cluster.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

ROOT: Final = Path(__file__).resolve().parents[1]
HOST: Final = "127.0.0.1"
NODES: Final = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
DEFAULT_SERVICES: Final = ("hdfs", "yarn", "postgres", "metastore")
SERVICES: Final = (*DEFAULT_SERVICES, "kafka")
NEEDS: Final = {"metastore": ("postgres",)}
POMS: Final = {**dict.fromkeys(("hdfs", "yarn", "metastore"), "daemons"), "kafka": "kafka"}  # of locks/, by service
NODE_MEMORY_MB, NODE_CORES = 4096, 4
KAFKA_ID: Final = "drivetrain-cluster-one"  # 16 bytes in URL-safe base64
KAFKA_MESSAGE_BYTES: Final = 64 << 20
NODE_TOOLS: Final = ("bash", "cat", "chmod", "cp", "find", "gzip", "id", "kill", "ln", "ls", "mkdir", "nice", "rm",
                     "setsid", "sh", "tar", "unzip")  # fmt: skip
# Small heaps and the first compiler only: the daemons do little here, and their memory is the tests'.
JVM: Final = (
    "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true",
    "-Djdk.lang.Process.launchMechanism=VFORK",  # half the time for each chmod of a NodeManager, one a file it unpacks
)  # fmt: skip


class ClusterError(Exception):
    """What is wrong and what to do, for the person at the terminal."""


@dataclass(frozen=True)
class Daemon:
    """One process: how it starts, and how to see that it serves. ``before`` runs once, while it is down.

    ``environ`` is its environment, by default the caller's.
    """

    name: str
    service: str
    command: Sequence[str]
    ready: Callable[[], bool]
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    before: Callable[[], None] = lambda: None


class Cluster:
    """The cluster of one checkout."""

    def __init__(self, home: Path, java: str) -> None:
        self.home, self.java = home / "cluster", java
        self.venv = home / "venv"
        for part in ("run", "logs", "data", "conf"):
            (self.home / part).mkdir(parents=True, exist_ok=True)

    # --- What stands where ---

    @cached_property
    def ports(self) -> dict[str, int]:
        """Name -> port: of the environment (CLUSTER_PORT_<NAME>), else that of the last start, else a free one."""
        file = self.home / "ports.json"
        kept: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
        names = ["namenode", "namenode_http", "resourcemanager", "resourcemanager_http", "resourcemanager_scheduler"]
        names += ["resourcemanager_tracker", "resourcemanager_admin", "postgres", "metastore"]
        names += ["kafka", "kafka_controller"]
        names += [f"datanode{i}{part}" for i in (1, 2) for part in ("", "_http", "_ipc")]
        names += [f"nodemanager{i}{part}" for i in (1, 2, 3) for part in ("", "_http", "_localizer")]
        given = {name: os.environ.get(f"CLUSTER_PORT_{name.upper()}") for name in names}
        free = _free_ports(len(names))
        ports = {name: int(given[name] or kept.get(name) or free.pop()) for name in names}
        file.write_text(json.dumps(ports, indent=1))
        return ports

    def data(self, name: str) -> Path:
        folder = self.home / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def url(self, name: str, path: str = "", host: str = HOST) -> str:
        return f"http://{host}:{self.ports[name]}{path}"

    @property
    def filesystem(self) -> str:
        return f"hdfs://{HOST}:{self.ports['namenode']}"

    # --- Jars ---

    @property
    def jars(self) -> Path:
        """Those of Hadoop's daemons."""
        return self.home / "jars"

    @property
    def kafka_jars(self) -> Path:
        return self.home / "jars-kafka"

    def provide_jars(self, pom: str = "daemons") -> None:
        """The jars of one pom by Maven, once for each change of its pinned list."""
        target = {"daemons": self.jars, "kafka": self.kafka_jars}[pom]
        file = ROOT / "locks" / f"{pom}.xml"
        wanted = hashlib.sha256(file.read_bytes()).hexdigest()
        stamp = target / "stamp"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        if not shutil.which("mvn"):
            raise ClusterError("Maven is needed to fetch the daemons' jars: apt-get install maven")
        say(f"fetching the jars of {file.name} with Maven (once) …")
        new = target.with_name(f"{target.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        words = ["mvn", "-q", "-B", "-f", str(file), "dependency:copy-dependencies", "-DincludeScope=runtime"]
        with (self.home / "logs" / "maven.log").open("wb") as log:
            words.append(f"-DoutputDirectory={new}")
            code = subprocess.run(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL).returncode
        if code:
            raise ClusterError(f"Maven failed; see {log.name}")
        if pom == "daemons":  # hadoop-hdfs has no web pages, without which neither NameNode nor DataNode starts
            for page in ("hdfs", "datanode", "secondary"):
                (new / "webapps" / page / "WEB-INF").mkdir(parents=True)
                (new / "webapps" / page / "WEB-INF" / "web.xml").write_text("<web-app/>")
        (new / "stamp").write_text(wanted)
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)

    # --- Configuration ---

    def configure(self) -> None:
        """Write conf/ (what clients use: HADOOP_CONF_DIR) and conf/<daemon>/ (what each daemon adds to it)."""
        self.write_conf("client", {})
        for daemon, more in self.own_settings().items():
            self.write_conf(daemon, more)
        self.write_kafka_conf()
        self.link_node_tools()

    def conf(self, daemon: str) -> Path:
        return self.home / "conf" / daemon

    def write_conf(self, daemon: str, more: Mapping[str, Mapping[str, object]]) -> None:
        folder = self.conf(daemon)
        folder.mkdir(parents=True, exist_ok=True)
        for file, settings in self.settings().items():
            (folder / file).write_text(_xml({**settings, **more.get(file, {})}))
        (folder / "log4j.properties").write_text(LOG4J)

    def settings(self) -> dict[str, dict[str, object]]:
        """What all share: file -> key -> value."""
        ports = self.ports
        return {
            "core-site.xml": {
                "fs.defaultFS": self.filesystem,
                "ipc.client.connect.max.retries": 3,
                "ipc.client.connect.retry.interval": 1000,
            },
            "hdfs-site.xml": {
                "dfs.replication": 2,
                "dfs.namenode.rpc-address": f"{HOST}:{ports['namenode']}",
                "dfs.namenode.http-address": f"{HOST}:{ports['namenode_http']}",
                "dfs.namenode.datanode.registration.ip-hostname-check": False,
                "dfs.namenode.safemode.extension": 0,
                "dfs.namenode.heartbeat.recheck-interval": 5000,
                "dfs.client.block.write.replace-datanode-on-failure.policy": "NEVER",
                "dfs.blocksize": 32 << 20,
            },
            "yarn-site.xml": self.yarn_settings(),
            "capacity-scheduler.xml": QUEUES,
            "hive-site.xml": {
                "hive.metastore.uris": f"thrift://{HOST}:{ports['metastore']}",
                "hive.metastore.warehouse.dir": f"{self.filesystem}/warehouse/hive",
            },
        }

    def yarn_settings(self) -> dict[str, object]:
        ports, manager = self.ports, "yarn.resourcemanager"
        return {
            f"{manager}.hostname": HOST,
            f"{manager}.address": f"{HOST}:{ports['resourcemanager']}",
            f"{manager}.scheduler.address": f"{HOST}:{ports['resourcemanager_scheduler']}",
            f"{manager}.resource-tracker.address": f"{HOST}:{ports['resourcemanager_tracker']}",
            f"{manager}.admin.address": f"{HOST}:{ports['resourcemanager_admin']}",
            f"{manager}.webapp.address": f"{HOST}:{ports['resourcemanager_http']}",
            f"{manager}.scheduler.class": f"{YARN_SERVER}.resourcemanager.scheduler.capacity.CapacityScheduler",
            f"{manager}.scheduler.monitor.enable": True,  # preemption
            f"{manager}.monitor.capacity.preemption.monitoring_interval": 1000,
            f"{manager}.monitor.capacity.preemption.max_wait_before_kill": 5000,
            f"{manager}.recovery.enabled": True,
            f"{manager}.work-preserving-recovery.enabled": True,
            f"{manager}.work-preserving-recovery.scheduling-wait-ms": 1000,
            f"{manager}.store.class": f"{YARN_SERVER}.resourcemanager.recovery.LeveldbRMStateStore",
            f"{manager}.leveldb-state-store.path": self.home / "data" / "resourcemanager" / "state",
            f"{manager}.am.max-attempts": 2,
            "yarn.scheduler.configuration.store.class": "leveldb",
            "yarn.scheduler.configuration.leveldb-store.path": self.home / "data" / "resourcemanager" / "scheduler",
            "yarn.scheduler.minimum-allocation-mb": 128,
            "yarn.scheduler.maximum-allocation-mb": NODE_MEMORY_MB,
            "yarn.am.liveness-monitor.expiry-interval-ms": 120_000,
            "yarn.nm.liveness-monitor.expiry-interval-ms": 20_000,
            "yarn.nodemanager.resource.memory-mb": NODE_MEMORY_MB,
            "yarn.nodemanager.resource.cpu-vcores": NODE_CORES,
            "yarn.nodemanager.vmem-check-enabled": False,
            "yarn.nodemanager.pmem-check-enabled": False,
            "yarn.nodemanager.recovery.enabled": True,
            "yarn.nodemanager.recovery.supervised": True,
            "yarn.nodemanager.disk-health-checker.max-disk-utilization-per-disk-percentage": 99.5,
            "yarn.nodemanager.delete.debug-delay-sec": 0,
            "yarn.log-aggregation-enable": True,
            "yarn.nodemanager.remote-app-log-dir": "/logs",
        }

    def own_settings(self) -> dict[str, dict[str, dict[str, object]]]:
        """Daemon -> file -> key -> value, over what all share."""
        ports = self.ports
        own: dict[str, dict[str, dict[str, object]]] = {
            "namenode": {"hdfs-site.xml": {"dfs.namenode.name.dir": self.data("namenode").as_uri()}},
            "resourcemanager": {},
            "metastore": {"hive-site.xml": self.metastore_settings()},
        }
        for i in (1, 2):
            name = f"datanode{i}"
            own[name] = {
                "hdfs-site.xml": {
                    "dfs.datanode.data.dir": self.data(name).as_uri(),
                    "dfs.datanode.address": f"{HOST}:{ports[name]}",
                    "dfs.datanode.http.address": f"{HOST}:{ports[f'{name}_http']}",
                    "dfs.datanode.ipc.address": f"{HOST}:{ports[f'{name}_ipc']}",
                    "dfs.datanode.du.reserved": 0,
                }
            }
        for i, host in enumerate(NODES, 1):
            name = f"nodemanager{i}"
            own[name] = {
                "yarn-site.xml": {
                    "yarn.nodemanager.hostname": host,
                    "yarn.nodemanager.address": f"{host}:{ports[name]}",
                    "yarn.nodemanager.webapp.address": f"{host}:{ports[f'{name}_http']}",
                    "yarn.nodemanager.localizer.address": f"{host}:{ports[f'{name}_localizer']}",
                    "yarn.nodemanager.local-dirs": self.data(name) / "local",
                    "yarn.nodemanager.log-dirs": self.data(name) / "logs",
                    "yarn.nodemanager.recovery.dir": self.data(name) / "recovery",
                    # Containers start without the NodeManager's PATH, and bash would give them its own.
                    "yarn.nodemanager.admin-env": f"PATH={self.node_environment()['PATH']}",
                }
            }
        return own

    def metastore_settings(self) -> dict[str, object]:
        jdo = "javax.jdo.option.Connection"
        return {
            f"{jdo}URL": f"jdbc:postgresql://{HOST}:{self.ports['postgres']}/metastore",
            f"{jdo}DriverName": "org.postgresql.Driver",
            f"{jdo}UserName": "hive",
            f"{jdo}Password": "hive",  # trusted on loopback; PostgreSQL asks for none
            "datanucleus.schema.autoCreateAll": True,
            "hive.metastore.schema.verification": False,
            "hive.async.log.enabled": False,
        }

    # --- Daemons ---

    def daemons(self) -> list[Daemon]:
        """In the order of their start."""
        hadoop = f"{self.jars}:{self.jars}/*"
        spark = f"{next(self.venv.glob('lib/python*/site-packages/pyspark/jars'))}/*"
        postgres_jar = next(self.jars.glob("postgresql-*.jar"), self.jars)
        hdfs, manager = "org.apache.hadoop.hdfs.server", YARN_SERVER
        found = [
            Daemon("namenode", "hdfs", self.jvm("namenode", 256, hadoop, f"{hdfs}.namenode.NameNode"),
                   self.namenode_serves, before=self.format_namenode),
            *[
                Daemon(f"datanode{i}", "hdfs", self.jvm(f"datanode{i}", 160, hadoop, f"{hdfs}.datanode.DataNode"),
                       lambda: self.live_datanodes() == 2)
                for i in (1, 2)
            ],
            Daemon("resourcemanager", "yarn",
                   self.jvm("resourcemanager", 320, hadoop, f"{manager}.resourcemanager.ResourceManager"),
                   lambda: bool(self.yarn("/ws/v1/cluster/info"))),
            *[
                Daemon(f"nodemanager{i}", "yarn",
                       self.jvm(f"nodemanager{i}", 160, hadoop, f"{manager}.nodemanager.NodeManager"),
                       lambda: self.running_nodes() == len(NODES), self.node_environment())
                for i in range(1, len(NODES) + 1)
            ],
            Daemon("postgres", "postgres", self.as_postgres_user(self.postgres_command()), self.postgres_serves,
                   before=self.init_postgres),
            Daemon("metastore", "metastore",
                   self.jvm("metastore", 256, f"{spark}:{postgres_jar}",
                            "org.apache.hadoop.hive.metastore.HiveMetaStore", "-p", str(self.ports["metastore"])),
                   lambda: _listens(self.ports["metastore"]), before=self.make_metastore_database),
            Daemon("kafka", "kafka", self.kafka_command(384, "kafka.Kafka", str(self.kafka_properties)),
                   lambda: _listens(self.ports["kafka"]), before=self.format_kafka),
        ]  # fmt: skip
        return found

    def jvm(self, name: str, heap_mb: int, jars: str, main: str, *words: str) -> list[str]:
        logs = self.home / "logs"
        return [self.java, f"-Xmx{heap_mb}m", *JVM, f"-Dhadoop.log.dir={logs}", "-cp", f"{self.conf(name)}:{jars}",
                main, *words]  # fmt: skip

    def node_environment(self) -> dict[str, str]:
        """A company's nodes have neither our Python nor our Java: a job that runs here brought its own."""
        return {"PATH": str(self.home / "node-tools"), "JAVA_HOME": "/nowhere", "USER": getpass.getuser()}

    def link_node_tools(self) -> None:
        """What YARN's own scripts call, and nothing else."""
        folder = Path(self.node_environment()["PATH"])
        folder.mkdir(exist_ok=True)
        for tool in NODE_TOOLS:
            if (path := shutil.which(tool)) and not (folder / tool).exists():
                (folder / tool).symlink_to(path)

    def format_namenode(self) -> None:
        if not (self.data("namenode") / "current").exists():
            main = "org.apache.hadoop.hdfs.server.namenode.NameNode"
            self.run_once("format", [*self.jvm("namenode", 256, f"{self.jars}:{self.jars}/*", main), "-format",
                                     "-nonInteractive"])  # fmt: skip

    def namenode_serves(self) -> bool:
        return self.namenode("NameNodeInfo").get("Safemode") == ""

    def live_datanodes(self) -> int:
        return int(self.namenode("FSNamesystemState").get("NumLiveDataNodes", 0))

    def namenode(self, bean: str) -> dict[str, Any]:
        """What the NameNode says of itself; nothing where it does not serve yet."""
        found = _json(self.url("namenode_http", f"/jmx?qry=Hadoop:service=NameNode,name={bean}"))
        return found["beans"][0] if found and found["beans"] else {}

    def yarn(self, path: str) -> Any:
        return _json(self.url("resourcemanager_http", path))

    def running_nodes(self) -> int:
        found = self.yarn("/ws/v1/cluster/nodes?states=RUNNING")
        return len((found["nodes"] or {}).get("node", [])) if found else 0

    def make_folders(self) -> None:
        """What a company's HDFS has: places for everybody's logs and temporary files, for users, for tables."""
        user = getpass.getuser()
        for path, mode in (
            ("/tmp", 1777),
            ("/logs", 1777),
            ("/user", 755),
            (f"/user/{user}", 750),
            ("/warehouse", 1777),
        ):
            query = f"op=MKDIRS&permission={mode}&user.name={user}"
            urllib.request.urlopen(
                urllib.request.Request(self.url("namenode_http", f"/webhdfs/v1{path}?{query}"), method="PUT"),
                timeout=30,
            ).close()

    # --- PostgreSQL ---

    @cached_property
    def postgres_bin(self) -> Path:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parent.parent.name))
        path = shutil.which("postgres") or (str(found[-1]) if found else None)
        if not path:
            raise ClusterError("PostgreSQL is needed, for the metastore too: apt-get install postgresql")
        return Path(path).resolve().parent

    def as_postgres_user(self, words: Sequence[str]) -> list[str]:
        """PostgreSQL does not run as root: then it runs as its own user."""
        return (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *words]
            if os.geteuid() == 0
            else list(words)
        )

    @property
    def postgres_data(self) -> Path:
        return self.data("postgres") / "db"

    def postgres_command(self) -> list[str]:
        settings = {"listen_addresses": HOST, "port": self.ports["postgres"], "unix_socket_directories": "",
                    "fsync": "off", "shared_buffers": "32MB", "max_connections": "100"}  # fmt: skip
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return [str(self.postgres_bin / "postgres"), "-D", str(self.postgres_data), *options]

    def init_postgres(self) -> None:
        if (self.postgres_data / "PG_VERSION").exists():
            return
        if os.geteuid() == 0:
            shutil.chown(self.data("postgres"), "postgres", "postgres")
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        words = [str(self.postgres_bin / "initdb"), "-D", str(self.postgres_data), *options]
        self.run_once("initdb", self.as_postgres_user(words))

    def postgres_serves(self) -> bool:
        return self.psql("postgres", "SELECT 1").returncode == 0

    def psql(self, database: str, statement: str) -> subprocess.CompletedProcess[str]:
        words = [
            str(self.postgres_bin / "psql"),
            "-h",
            HOST,
            "-p",
            str(self.ports["postgres"]),
            "-U",
            "postgres",
            "-d",
            database,
        ]
        return subprocess.run([*words, "-qAtc", statement], capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def make_metastore_database(self) -> None:
        wait("postgres", self.postgres_serves, 30)
        if not self.psql("postgres", "SELECT 1 FROM pg_database WHERE datname = 'metastore'").stdout.strip():
            self.psql("postgres", "CREATE ROLE hive LOGIN")
            self.psql("postgres", "CREATE DATABASE metastore OWNER hive")
        if not self.psql("metastore", "SELECT 1 FROM pg_tables WHERE tablename = 'TBL_PRIVS'").stdout.strip():
            self.make_metastore_tables()

    def make_metastore_tables(self) -> None:
        """All tables at once: the metastore makes each when it first needs it, and then waits for its own locks."""
        jars, home = next(self.venv.glob("lib/python*/site-packages/pyspark/jars")), self.data("metastore")
        with zipfile.ZipFile(next(jars.glob("hive-metastore-*.jar"))) as jar:
            jar.extract("package.jdo", home)
        settings = {**self.metastore_settings(), "datanucleus.identifierFactory": "datanucleus1",
                    "datanucleus.rdbms.useLegacyNativeValueStrategy": True}  # fmt: skip
        properties = home / "tables.properties"
        properties.write_text("".join(f"{key}={str(value).lower() if value is True else value}\n"
                                      for key, value in settings.items()))  # fmt: skip
        words = [self.java, "-cp", f"{jars}/*:{self.jars}/*", "org.datanucleus.store.schema.SchemaTool", "-create",
                 "-props", str(properties), str(home / "package.jdo")]  # fmt: skip
        self.run_once("metastore-tables", words)

    # --- Kafka ---

    @property
    def kafka_properties(self) -> Path:
        return self.conf("kafka") / "server.properties"

    @property
    def kafka_bootstrap(self) -> str:
        return f"{HOST}:{self.ports['kafka']}"

    def kafka_command(self, heap_mb: int, main: str, *words: str) -> list[str]:
        conf = self.conf("kafka") / "log4j2.properties"
        return [self.java, f"-Xmx{heap_mb}m", *JVM, f"-Dlog4j2.configurationFile={conf.as_uri()}", "-cp",
                f"{self.kafka_jars}/*", main, *words]  # fmt: skip

    def kafka_settings(self) -> dict[str, object]:
        """One node that is broker and controller, and keeps one copy of what a company's cluster has three of."""
        controller = f"{HOST}:{self.ports['kafka_controller']}"
        copied = ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")
        return {
            "node.id": 1,
            "process.roles": "broker,controller",
            "controller.quorum.voters": f"1@{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.kafka_bootstrap},CONTROLLER://{controller}",
            "log.dirs": self.data("kafka"),
            "auto.create.topics.enable": "false",
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "offsets.topic.num.partitions": 3,
            "transaction.state.log.num.partitions": 3,
            "group.initial.rebalance.delay.ms": 0,
            "message.max.bytes": KAFKA_MESSAGE_BYTES,
            **{f"{topic}.replication.factor": 1 for topic in copied},
        }

    def write_kafka_conf(self) -> None:
        self.conf("kafka").mkdir(parents=True, exist_ok=True)
        lines = [f"{key}={value}\n" for key, value in self.kafka_settings().items()]
        self.kafka_properties.write_text("".join(lines))
        (self.conf("kafka") / "log4j2.properties").write_text(LOG4J2)

    def format_kafka(self) -> None:
        if not (self.data("kafka") / "meta.properties").exists():
            words = ("format", "-t", KAFKA_ID, "-c", str(self.kafka_properties))
            self.run_once("kafka-format", self.kafka_command(128, "kafka.tools.StorageTool", *words))

    # --- Processes ---

    def run_once(self, name: str, words: Sequence[str]) -> None:
        log = self.home / "logs" / f"{name}.log"
        with log.open("wb") as file:
            done = subprocess.run(words, stdout=file, stderr=file, stdin=subprocess.DEVNULL, cwd="/")
        if done.returncode:
            raise ClusterError(f"{name} failed; see {log}")

    def pid(self, name: str) -> int | None:
        """The daemon's process, if it is still the one that was started."""
        file = self.home / "run" / f"{name}.json"
        if not file.exists():
            return None
        known = json.loads(file.read_text())
        ours = known["started"] and _started(known["pid"]) == known["started"]  # null: it ended at once
        return int(known["pid"]) if ours else None

    def start(self, daemon: Daemon) -> None:
        if self.pid(daemon.name):
            return
        daemon.before()
        log = self.home / "logs" / f"{daemon.name}.log"
        environ = {**daemon.environ, "HADOOP_CONF_DIR": str(self.conf(daemon.name))}
        with log.open("ab") as file:
            process = subprocess.Popen(
                daemon.command,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                cwd="/",
                env=environ,
                start_new_session=True,
            )
        record = json.dumps({"pid": process.pid, "started": _started(process.pid)})
        (self.home / "run" / f"{daemon.name}.json").write_text(record)

    def up(self, services: Sequence[str]) -> None:
        """Start what is not running of the services and of what they need, and wait until all of it serves."""
        began = time.monotonic()
        services = [name for name in SERVICES if name in {*services, *(n for s in services for n in NEEDS.get(s, ()))}]
        for pom in dict.fromkeys(POMS[name] for name in services if name in POMS):
            self.provide_jars(pom)
        self.configure()
        wanted = [daemon for daemon in self.daemons() if daemon.service in services]
        with ThreadPoolExecutor(len(wanted)) as pool:  # each waits mostly for its JVM
            list(pool.map(self.start, wanted))
            waiting = [
                pool.submit(wait, daemon.name, daemon.ready, 120, partial(self.alive, daemon)) for daemon in wanted
            ]
            for one in waiting:
                one.result()
        if "hdfs" in services:
            self.make_folders()
        took = f"up after {time.monotonic() - began:.0f} s"
        say(f"{', '.join(services)}: {took}; `scripts/cluster env` prints the settings")

    def alive(self, daemon: Daemon) -> None:
        if not self.pid(daemon.name):
            log = self.home / "logs" / f"{daemon.name}.log"
            last = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
            raise ClusterError("\n    ".join([f"{daemon.name} ended at once; see {log}", *last]))

    def down(self) -> None:
        """End our processes, each asked first; containers that a NodeManager keeps for its return are ended too."""
        files = sorted((self.home / "run").glob("*.json"))
        running = {file.stem: pid for file in files if (pid := self.pid(file.stem))}
        for name, pid in running.items():
            os.kill(pid, signal.SIGINT if name == "postgres" else signal.SIGTERM)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and any(self.pid(name) for name in running):
            time.sleep(0.1)
        for name in running:
            if pid := self.pid(name):
                os.kill(pid, signal.SIGKILL)
        for pid in self.containers():
            os.kill(pid, signal.SIGKILL)
        for file in files:
            file.unlink(missing_ok=True)

    def containers(self) -> list[int]:
        """Processes that run below a NodeManager's folders."""
        below = str(self.home / "data" / "nodemanager")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if str((process / "cwd").readlink()).startswith(below):
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    def status(self) -> list[tuple[str, int | None, float, bool]]:
        """Name, pid, MB of memory, and whether it serves, of each daemon."""
        return [(d.name, pid := self.pid(d.name), _memory_mb(pid), bool(pid) and d.ready()) for d in self.daemons()]

    def environment(self) -> dict[str, str]:
        """What a client of the cluster sets."""
        conf = str(self.conf("client"))
        kafka = {"KAFKA_BOOTSTRAP": self.kafka_bootstrap} if self.pid("kafka") else {}
        return {"HADOOP_CONF_DIR": conf, "YARN_CONF_DIR": conf, **kafka}


YARN_SERVER: Final = "org.apache.hadoop.yarn.server"
QUEUES: Final[dict[str, object]] = {
    "yarn.scheduler.capacity.root.queues": "critical,adhoc,default",
    "yarn.scheduler.capacity.root.critical.capacity": 40,
    "yarn.scheduler.capacity.root.critical.maximum-capacity": 100,
    "yarn.scheduler.capacity.root.adhoc.capacity": 25,
    "yarn.scheduler.capacity.root.adhoc.maximum-capacity": 100,
    "yarn.scheduler.capacity.root.default.capacity": 35,
    "yarn.scheduler.capacity.root.default.maximum-capacity": 100,
    "yarn.scheduler.capacity.maximum-am-resource-percent": 0.5,
    "yarn.scheduler.capacity.resource-calculator": "org.apache.hadoop.yarn.util.resource.DominantResourceCalculator",
}
LOG4J: Final = """log4j.rootLogger=INFO, console
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.target=System.err
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c{2}: %m%n
"""
LOG4J2: Final = """rootLogger.level=INFO
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.target=SYSTEM_ERR
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %p %c{2}: %m%n
"""


def say(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)


def wait(what: str, ready: Callable[[], bool], seconds: float, alive: Callable[[], object] = lambda: None) -> None:
    """Until ``ready``; ``alive`` raises where waiting is in vain."""
    deadline = time.monotonic() + seconds
    while not ready():
        alive()
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} does not serve after {seconds:g} s; see its log")
        time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind((HOST, 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def _listens(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex((HOST, port)) == 0


def _json(url: str) -> Any:
    """The answer; None where nobody answers yet."""
    try:
        request = urllib.request.Request(url, headers={"Accept": "application/json"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)
    except (OSError, ValueError, urllib.error.URLError):
        return None


def _xml(settings: Mapping[str, object]) -> str:
    def text(value: object) -> str:
        return str(value).lower() if isinstance(value, bool) else escape(str(value))

    rows = [f"<property><name>{key}</name><value>{text(value)}</value></property>" for key, value in settings.items()]
    return "\n".join(['<?xml version="1.0"?>', "<configuration>", *rows, "</configuration>", ""])


def _started(pid: int) -> str | None:
    """When the process began, in clock ticks since the machine did: with the pid it names one process for good."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _memory_mb(pid: int | None) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser("scripts/cluster", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--home", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--java", required=True, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start services and wait until they serve")
    up.add_argument("services", nargs="*", help=f"of {' '.join(SERVICES)}; default: all but kafka")
    commands.add_parser("down", help="end all of this checkout's daemons; their data stay")
    commands.add_parser("status", help="what runs, its memory, and whether it serves")
    commands.add_parser("env", help='the settings of a client, for: eval "$(scripts/cluster env)"')
    given = parser.parse_args()
    cluster = Cluster(given.home.resolve(), given.java)
    try:
        if given.command == "up":
            unknown = [name for name in given.services if name not in SERVICES]
            if unknown:
                raise ClusterError(f"no service is named {unknown[0]!r}; there are {', '.join(SERVICES)}")
            cluster.up(given.services or DEFAULT_SERVICES)
        elif given.command == "down":
            cluster.down()
        elif given.command == "env":
            for key, value in cluster.environment().items():
                print(f"export {key}={shlex.quote(value)}")
        else:
            rows = cluster.status()
            for name, pid, memory, serves in rows:
                print(f"{name:18} {pid or '-':>8} {memory:7.0f} MB  {'serves' if serves else 'down'}")
            print(f"{'in all':18} {'':8} {sum(row[2] for row in rows):7.0f} MB")
    except ClusterError as error:
        say(str(error))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
