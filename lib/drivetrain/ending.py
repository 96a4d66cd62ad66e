"""SIGTERM and Ctrl-C to a job that runs until somebody ends it.

spark-submit's process is Java, and Python its child: who ends the job asks Java, which would stop Spark under the job's
feet. So Java passes it on to Python. Ctrl-C reaches both.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from pyspark.java_gateway import ensure_callback_server_started
from pyspark.sql import SparkSession

INTERRUPTED, ORPHANED = 130, 1
ECHO_SECONDS: Final = 1.0  # in which the same Ctrl-C may come a second time, by way of Java


class Ending:
    """Sets ``stop`` and calls ``say`` when the process is asked to end; asked again, it ends as it stands."""

    def __init__(self, spark: SparkSession, stop: threading.Event, say: Callable[[str], object]) -> None:
        self.stop, self.say, self.asked = stop, say, 0.0
        if "PYSPARK_GATEWAY_PORT" in os.environ:  # as spark-submit's child
            threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()
        gateway: Any = spark.sparkContext._gateway
        ensure_callback_server_started(gateway)  # type: ignore[no-untyped-call]
        java = gateway.jvm.sun.misc.Signal
        for name in ("TERM", "INT"):
            signal.signal(getattr(signal, f"SIG{name}"), self.handle)
            java.handle(java(name), self)

    def handle(self, *_: object) -> None:
        now = time.monotonic()
        if not self.stop.is_set():
            self.asked = now
            self.stop.set()
            self.say("ending: what has come is merged first; ask again to end at once")
        elif now - self.asked > ECHO_SECONDS:
            os._exit(INTERRUPTED)

    class Java:
        implements: Final = ["sun.misc.SignalHandler"]


def follow(parent: int) -> None:
    """End with the parent: without Java the job would try again for ever, and hold its leases."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(ORPHANED)
