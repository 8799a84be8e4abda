"""Many watchers in one process: python watch_clients.py ADDRESS WATCHERS TOKEN

Each of WATCHERS streams watches one turn from its begin to its end; as many watch sessions where nothing happens;
one more never reads, and one breaks its connection every second. Prints what each got as a line of JSON.
"""

import asyncio
import hashlib
import json
import sys
import time
from typing import Any

import grpc

from karta import v1
from karta.v1.session_service_pb2_grpc import SessionServiceStub
from karta.v1.turn_service_pb2_grpc import TurnServiceStub

STREAMS_A_CHANNEL = 100
EVENTS = 200
EVENT_BYTES = 1000
PACE_SECONDS = 0.015
LATE_CHECKS = 20
STEP_SECONDS = 200
# A window that does not grow: what is not read stays in the server.
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]
_OWN = ("grpc.use_local_subchannel_pool", 1)


class Digest:
    """What a watcher got, in its order: sequences without a gap, and a hash of all."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.last = 0
        self.finished = False
        self.late: list[float] = []

    def take(self, frame: v1.WatchSessionResponse) -> None:
        now = time.time()
        for event in frame.events:
            assert event.sequence == self.last + 1, f"{event.sequence} came behind {self.last}"
            self.last = event.sequence
            self._hash.update(event.SerializeToString(deterministic=True))
            self.late.append(now - event.create_time.ToMicroseconds() / 1e6)
            self.finished = self.finished or event.HasField("turn_finished")

    def result(self) -> list[Any]:
        return [self.last, self._hash.hexdigest()]


class Clients:
    def __init__(self, address: str, count: int) -> None:
        self._count = count
        self._address = address
        self._channels = [self._channel(number) for number in range(2 * count // STREAMS_A_CHANNEL + 1)]
        self._all = [SessionServiceStub(channel) for channel in self._channels]

    def _channel(self, number: int, *options: tuple[str, int]) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._address, options=[_OWN, ("number", number), *options])

    def stub(self, number: int) -> SessionServiceStub:
        return self._all[number // STREAMS_A_CHANNEL]

    async def run(self) -> dict[str, Any]:
        session = (await self._all[0].CreateSession(v1.CreateSessionRequest())).session
        slow_channel = self._channel(-1, *SMALL_WINDOW)
        slow = SessionServiceStub(slow_channel).WatchSession(request(session))
        idle = await self._watch_idle()
        digests = [Digest() for _ in range(self._count)]
        ready = [asyncio.Event() for _ in digests]
        watching = [
            asyncio.create_task(self._watch(self.stub(number), session, digest, ready[number]))
            for number, digest in enumerate(digests)
        ]
        await asyncio.gather(*(each.wait() for each in ready))
        breaking = Digest()
        cuts = asyncio.create_task(self._watch_with_cuts(session, breaking))
        await self._speak(session)
        await asyncio.gather(*watching)
        fast_at = time.time()
        cut_count = await cuts
        # Only now does the slow one read: nobody waited for it.
        slow_digest = Digest()
        while not slow_digest.finished:
            slow_digest.take(await slow.read())
        slow.cancel()
        late = sorted(seconds for digest in digests for seconds in digest.late[1:])
        result = {
            "results": [digest.result() for digest in (*digests, breaking, slow_digest)],
            "cuts": cut_count,
            "slow_seconds_behind": time.time() - fast_at,
            "late_p50": late[len(late) // 2],
            "late_p99": late[int(len(late) * 0.99)],
            "late_max": late[-1],
            "idle_woken": await self._wake_idle(idle),
        }
        for channel in (slow_channel, *self._channels):
            await channel.close()
        return result

    async def _speak(self, session: v1.Session) -> None:
        word = "x" * (EVENT_BYTES - 1) + " "
        blocks = [{"text": word * EVENTS, "pace": PACE_SECONDS}]
        message = v1.Message(parts=[v1.Part(text=f"SCRIPT:{json.dumps([blocks])}END")])
        start = v1.StartTurnRequest(session_id=session.session_id, message=message)
        await TurnServiceStub(self._channels[-1]).StartTurn(start)

    async def _watch(self, stub: Any, session: v1.Session, digest: Digest, ready: asyncio.Event) -> None:
        stream = stub.WatchSession(request(session))
        while not digest.finished:
            digest.take(await stream.read())
            ready.set()
        stream.cancel()

    async def _watch_with_cuts(self, session: v1.Session, digest: Digest) -> int:
        cuts = 0
        while not digest.finished:
            channel = self._channel(1000 + cuts)
            stream = SessionServiceStub(channel).WatchSession(request(session, digest.last))
            try:
                async with asyncio.timeout(1):
                    while not digest.finished:
                        digest.take(await stream.read())
            except TimeoutError:
                cuts += 1
            await channel.close()
        return cuts

    async def _watch_idle(self) -> list[tuple[v1.Session, Any]]:
        async def begin(number: int) -> tuple[v1.Session, Any]:
            stub = self.stub(self._count + number)
            session = (await stub.CreateSession(v1.CreateSessionRequest())).session
            stream = stub.WatchSession(request(session))
            await stream.read()
            return session, stream

        return await asyncio.gather(*(begin(number) for number in range(self._count)))

    async def _wake_idle(self, idle: list[tuple[v1.Session, Any]]) -> int:
        """Let something happen in some of the idle sessions, and count the watchers that hear of it."""
        heard = 0
        for session, stream in idle[:: max(1, len(idle) // LATE_CHECKS)]:
            update = v1.UpdateSessionRequest(session=v1.Session(session_id=session.session_id, title="late"))
            update.update_mask.paths.append("title")
            await self._all[0].UpdateSession(update)
            frame = await stream.read()
            while not frame.events:
                frame = await stream.read()  # A heartbeat.
            heard += [event.WhichOneof("kind") for event in frame.events] == ["session_updated"]
        for _, stream in idle:
            stream.cancel()
        return heard


def request(session: v1.Session, after: int = 0) -> v1.WatchSessionRequest:
    return v1.WatchSessionRequest(session_id=session.session_id, after_sequence=after, follow=True)


async def main() -> None:
    address, count = sys.argv[1], int(sys.argv[2])
    print(json.dumps(await asyncio.wait_for(Clients(address, count).run(), STEP_SECONDS)))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
