"""A Kafka broker of a test's own, where one may also have to log in."""

from __future__ import annotations

import sys
from pathlib import Path

from confluent_kafka import TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    NewPartitions,
    ResourcePatternType,
    ResourceType,
)
from database import HOME, ROOT, cluster_module

sys.path.append(str(ROOT / "scripts"))

from one_broker import OneBroker, done

USER, PASSWORD = "reader_of_plant", "s3cret-Pa55-of-the-plant"
LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"


class Broker(OneBroker):
    """With a second port where a user has to log in."""

    def __init__(self, home: Path, java: str) -> None:
        module = cluster_module()
        super().__init__(module, home, HOME, java)
        self.port_of_users = module._free_ports(1)[0]
        settings = {**self.cluster.kafka_settings(), **self.logins()}
        settings["listeners"] = f"{settings['listeners']},SASL_PLAINTEXT://{self.bootstrap_of_users}"
        self.cluster.kafka_settings = lambda: settings

    @property
    def bootstrap_of_users(self) -> str:
        return f"127.0.0.1:{self.port_of_users}"

    def logins(self) -> dict[str, str]:
        """Who comes by the first port may do all; who logs in at the second may do what he is let to."""
        return {
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_plaintext.plain.sasl.jaas.config": f'{LOGIN} user_{USER}="{PASSWORD}";',
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }

    def let_read(self, topic: str) -> None:
        """Our user, that topic."""
        rules = [
            AclBinding(ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, f"User:{USER}", "*", operation,
                       AclPermissionType.ALLOW)
            for operation in (AclOperation.READ, AclOperation.DESCRIBE)
        ]  # fmt: skip
        done(self.admin.create_acls(rules))

    def add_partitions(self, topic: str, total: int) -> None:
        done(self.admin.create_partitions([NewPartitions(topic, total)]))

    def delete(self, topic: str) -> None:
        done(self.admin.delete_topics([topic]))

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        done(self.admin.delete_records([TopicPartition(topic, partition, before)]))
