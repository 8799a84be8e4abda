"""Scenarios against servers that speak HTTP: a client on bare sockets, so that the servers are what is measured."""

import asyncio
import json
import time
from typing import Any

from tests.bench.payload import LostEventsError, prompt

Measured = dict[str, Any]


class Connection:
    """One kept-alive connection."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")

    async def open(self) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(self._host, int(self._port), limit=1 << 22)

    def close(self) -> None:
        """Disconnect."""
        self._writer.close()

    async def post(self, path: str, body: dict[str, Any]) -> int | None:
        """Send a request, read the answer's head; return the length of its body, None when that is chunked."""
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
            f"accept: */*\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        self._writer.write(head.encode() + data)
        status, *headers = (await self._reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        fields = dict(line.split(b": ", 1) for line in headers if line)
        if b" 200" not in status:
            raise LostEventsError(f"{path} answered {status.decode()}")
        return int(fields[b"content-length"]) if b"content-length" in fields else None

    async def body(self, length: int) -> Any:
        """Return the JSON of a body of known length."""
        return json.loads(await self._reader.readexactly(length))

    async def events(self) -> list[dict[str, Any]]:
        """Return the events that have come, at least one; none at the end."""
        buffer = b""
        while True:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            chunk = (await self._reader.readexactly(size + 2))[:-2]
            if not chunk:
                return []
            buffer += chunk
            if buffer.endswith((b"\n\n", b"\r\n\r\n")):
                return [json.loads(line[6:]) for line in buffer.splitlines() if line.startswith(b"data: ")]


class Scenario:
    """A connection for each of the callers."""

    def __init__(self, address: str, callers: int) -> None:
        self._connections = [Connection(address) for _ in range(callers)]

    async def open(self) -> None:
        """Connect."""
        for connection in self._connections:
            await connection.open()

    async def close(self) -> None:
        """Disconnect."""
        for connection in self._connections:
            connection.close()


class SseTurns(Scenario):
    """Streams at once, each read to its end."""

    def __init__(self, address: str, turns: int, pieces: int) -> None:
        super().__init__(address, turns)
        self._pieces = pieces
        self._body = {"text": prompt(pieces), "stream": True}
        self._paths = ["/turns"] * turns

    async def run(self) -> Measured:
        """Run all turns once."""
        begin = time.perf_counter()
        await asyncio.gather(*map(self._turn, self._connections, self._paths))
        return {"count": len(self._connections) * self._pieces, "seconds": time.perf_counter() - begin}

    async def _turn(self, connection: Connection, path: str) -> None:
        texts = characters = sequence = 0
        await connection.post(path, self._body)
        while events := await connection.events():
            for event in events:
                if (text := self.text(event)) is not None:
                    sequence += 1
                    if self.sequence(event) != sequence:
                        raise LostEventsError(f"event {self.sequence(event)} came instead of {sequence}")
                    texts += 1
                    characters += len(text)
        if texts != self._pieces:
            raise LostEventsError(f"{texts} pieces of text came instead of {self._pieces}")

    @staticmethod
    def text(event: dict[str, Any]) -> str | None:
        """Return the text of an event of text."""
        return event.get("text")

    @staticmethod
    def sequence(event: dict[str, Any]) -> int:
        """Return an event's number."""
        return int(event["sequence"])


async def _make_sessions(connections: list[Connection]) -> list[str]:
    paths = []
    for connection in connections:
        length = await connection.post("/v1/sessions", {})
        assert length is not None
        session = await connection.body(length)
        paths.append(f"/v1/sessions/{session['id']}/messages")
    return paths


class UpstreamTurns(SseTurns):
    """Streams of karta-runtime 0.1.0."""

    async def open(self) -> None:
        await super().open()
        self._paths = await _make_sessions(self._connections)

    @staticmethod
    def text(event: dict[str, Any]) -> str | None:
        return event["data"]["part"]["text"] if event["type"] == "text" else None

    @staticmethod
    def sequence(event: dict[str, Any]) -> int:
        return int(event["data"]["sequence"])


class UpstreamCallers(Scenario):
    """Callers of karta-runtime 0.1.0 that send one message after another."""

    def __init__(self, address: str, callers: int, turns: int) -> None:
        super().__init__(address, callers)
        self._turns = turns

    async def open(self) -> None:
        await super().open()
        self._paths = await _make_sessions(self._connections)

    async def run(self) -> Measured:
        """Send all messages."""
        latencies: list[float] = []
        begin = time.perf_counter()
        await asyncio.gather(
            *(self._call(*pair, latencies) for pair in zip(self._connections, self._paths, strict=True))
        )
        took = time.perf_counter() - begin
        return {"count": len(latencies), "seconds": took, "latencies": latencies}

    async def _call(self, connection: Connection, path: str, latencies: list[float]) -> None:
        for _ in range(self._turns):
            begin = time.perf_counter()
            length = await connection.post(path, {"text": "hello"})
            assert length is not None
            answer = await connection.body(length)
            latencies.append(time.perf_counter() - begin)
            # Its accumulator keeps the last delta of a part.
            if answer["text"] != "hello":
                raise LostEventsError(f"the turn's text is {answer['text']!r}")
