"""A real redis-server on a free port of this machine, with a folder of its own, ended by its process id."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

START = 60.0
"""Seconds until a server must answer, on a busy machine too."""


def free_port() -> int:
    """A port that is free at this moment, and that the system gives to no outgoing connection.

    Those it gives to others at any time: also while a test has stopped its server and will start it again.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class PortTakenError(Exception):
    """Another program listens where the server should."""


class RedisServer:
    """A server that a test may stop, kill and start again on the same data."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except PortTakenError:
            assert port is None
            # Another program was faster.
            self.port = free_port()
            self.start()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        basic = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"]
        path = self.folder / "redis.log"
        with path.open("ab") as log:
            start = log.tell()
            self.process = subprocess.Popen(
                ["redis-server", *basic, "--dir", str(self.folder), *self.options], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START
        # Who answers may be another server that has the port; ours ends at once then.
        while self.process.poll() is None and not self._answers():
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)
        output = path.read_bytes()[start:]
        if b"in use" in output:
            self.process.kill()
            self.process.wait()
            raise PortTakenError(self.port)
        assert self.process.poll() is None, output.decode(errors="replace")

    def _answers(self) -> bool:
        port = self.port
        if "--tls-port" in self.options:
            port = int(self.options[self.options.index("--tls-port") + 1])
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as client:
            if port != self.port:
                return True
            client.sendall(b"PING\r\n")
            # An error is an answer as well, unless it says that data is being loaded.
            answer = client.recv(100)
            return bool(answer) and not answer.startswith(b"-LOADING")
        return False

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
