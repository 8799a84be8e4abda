"""Karta itself, through its command; `--store memory` puts a store without a log in the place of the real one."""

import sys

import karta_server.hosting
from karta_server.cli import main
from karta_server.config import Config
from karta_server.server import Server
from tests.bench.servers.memory_store import MemoryStore


class LoglessServer(Server):
    """The same server; nothing is durable."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._store = MemoryStore()  # type: ignore[assignment]


if __name__ == "__main__":
    if sys.argv.pop(1) == "memory":
        karta_server.hosting.Server = LoglessServer  # type: ignore[misc]
    main()
