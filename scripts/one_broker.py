"""A Kafka broker for one program: the service `kafka` of scripts/cluster in a folder of its own, and a client of it
that is not Spark's. For tests and benchmarks; confluent-kafka is among the tests' tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

MESSAGE_BYTES = 64 << 20


class OneBroker:
    """``module`` is scripts/cluster.py; ``state`` the folder that has the environment and the broker's jars."""

    def __init__(self, module: ModuleType, home: Path, state: Path, java: str) -> None:
        module.Cluster(state, java).provide_jars("kafka")
        self.cluster = module.Cluster(home, java)
        for part in ("venv", "cluster/jars-kafka"):
            (home / part).symlink_to(state / part)

    @property
    def bootstrap(self) -> str:
        return str(self.cluster.kafka_bootstrap)

    def up(self) -> None:
        self.cluster.up(["kafka"])

    def down(self) -> None:
        self.cluster.down()

    @cached_property  # one that is let go ends with what it has been asked
    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap})

    def create(self, topic: str, partitions: int = 1, **config: str) -> None:
        settings = {"max.message.bytes": str(MESSAGE_BYTES), **config}
        done(self.admin.create_topics([NewTopic(topic, partitions, 1, config=settings)]))

    def producer(self, **config: Any) -> Producer:
        return Producer({"bootstrap.servers": self.bootstrap, "message.max.bytes": MESSAGE_BYTES, **config})

    def send(
        self, topic: str, values: Sequence[bytes | None], partition: int = 0, key: bytes | None = None, **config: Any
    ) -> None:
        """Each value a message; returns when the broker has all of them."""
        producer = self.producer(**config)
        for value in values:
            producer.produce(topic, value, key, partition)
        assert producer.flush(60) == 0

    def server(self, **changes: Any) -> dict[str, Any]:
        return {"server": "local", "type": "kafka", "host": self.bootstrap, **changes}


def done(futures: Mapping[Any, Any]) -> None:
    """Returns when the broker has done all that it was asked."""
    for future in futures.values():
        future.result(30)
