"""A model server that needs no network: the Anthropic Messages API on loopback, answering by script.

It lets the real Claude Code run without internet and without credentials: the
prompt itself says what the model does (see script.py). A prompt without a
script is echoed, with the number of prompts that the conversation holds, so
that one can see that the conversation is remembered.

    python -m karta_server.testing.offline_model --port 0 --log requests.jsonl
"""

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import sys
from collections import OrderedDict, deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from karta_server.testing.answer import DroppedError, error_body, stream_events, whole_message
from karta_server.testing.conversation import Blocks, answer_blocks, input_tokens, script_key

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_HEADER_BYTES = 64 * 1024
MAX_CONNECTIONS = 256
MAX_KEPT_REQUESTS = 256
MAX_COUNTED_FAILURES = 4096
IDLE_SECONDS = 120
READ_SECONDS = 30

_log = logging.getLogger(__name__)

_LOGGED = ("model", "stream", "max_tokens", "system", "tools", "messages")
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def offline_environment(home: Path, model_url: str) -> dict[str, str]:
    """Return the whole environment for a Claude Code that talks to the offline model only.

    `home` becomes HOME and is made when it is missing; nothing of the machine's
    own configuration is seen or touched.
    """
    temporary = home / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    return {
        "HOME": str(home),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TMPDIR": str(temporary),
        "CLAUDE_CONFIG_DIR": str(home / ".claude"),
        "ANTHROPIC_BASE_URL": model_url,
        "ANTHROPIC_API_KEY": "offline-dummy",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "2",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_ERROR_REPORTING": "1",
    }


class OfflineModel:
    """The server, between `start` and `close`, or as an async context manager."""

    def __init__(self, port: int = 0, log: Path | None = None) -> None:
        """Listen on `port` of 127.0.0.1 (0: any); append each request to `log` as a line of JSON."""
        self.requests: deque[dict[str, Any]] = deque(maxlen=MAX_KEPT_REQUESTS)
        """The last requests to /v1/messages: model, stream, max_tokens, system, tools, messages."""
        self._port = port
        self._log = log
        self._failures: OrderedDict[str, int] = OrderedDict()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The base URL, once started."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Begin to listen; raises OSError when the port is taken."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port, limit=MAX_HEADER_BYTES)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and end all connections; idempotent."""
        if self._server is None:
            return
        self._server.close()
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._serve_one(reader, _Reply(writer)):
                pass
        except DroppedError:
            _log.debug("the script drops the connection")  # closed, not reset: what was sent before arrives
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve_one(self, reader: asyncio.StreamReader, reply: "_Reply") -> bool:
        """Answer one request; return whether the connection can take another."""
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), IDLE_SECONDS)
        method, path, length = _parse_head(head)
        if length < 0 or length > MAX_BODY_BYTES:
            await reply.error(413, f"the body needs a Content-Length of at most {MAX_BODY_BYTES} bytes")
            return False
        raw = await asyncio.wait_for(reader.readexactly(length), READ_SECONDS)
        if method != "POST":
            await reply.json(200, {"service": "karta offline model"}, body_is_sent=method != "HEAD")
        elif path not in ("/v1/messages", "/v1/messages/count_tokens"):
            await reply.error(404, f"the offline model has no {path}")
        else:
            await self._answer(path, raw, reply)
        return True

    async def _answer(self, path: str, raw: bytes, reply: "_Reply") -> None:
        try:
            body = json.loads(raw)
            if path.endswith("count_tokens"):
                await reply.json(200, {"input_tokens": input_tokens(body)})
                return
            self._record(body)
            blocks = self._unspent(script_key(body), answer_blocks(body))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            await reply.error(400, f"not a request that the offline model understands: {error!r}")
            return
        failure = next((block for block in blocks if "error" in block), None)
        if failure is not None:
            await reply.scripted_error(failure)
        elif body.get("stream"):
            await reply.stream(body, blocks)
        else:
            await reply.json(200, await whole_message(body, blocks))

    def _record(self, body: dict[str, Any]) -> None:
        request = {key: body.get(key) for key in _LOGGED}
        self.requests.append(request)
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(request) + "\n")

    def _unspent(self, key: str, blocks: Blocks) -> Blocks:
        """Return the blocks without the failures that happened often enough, and count the rest."""
        return [
            block
            for number, block in enumerate(blocks)
            if "times" not in block or self._spend(f"{number}:{key}", block)
        ]

    def _spend(self, key: str, block: dict[str, Any]) -> bool:
        happened = self._failures.pop(key, 0)
        self._failures[key] = happened + 1
        if len(self._failures) > MAX_COUNTED_FAILURES:
            self._failures.popitem(last=False)
        return happened < int(block["times"])


class _Reply:
    """Writes one answer of HTTP/1.1."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def json(self, status: int, value: Any, *, body_is_sent: bool = True, headers: str = "") -> None:
        content = json.dumps(value).encode()
        self._head(status, f"content-type: application/json\r\ncontent-length: {len(content)}\r\n{headers}")
        if body_is_sent:
            self._writer.write(content)
        await self._writer.drain()

    async def error(self, status: int, message: str, kind: str | None = None, headers: str = "") -> None:
        await self.json(status, error_body(kind or _ERROR_TYPES.get(status, "api_error"), message), headers=headers)

    async def scripted_error(self, block: dict[str, Any]) -> None:
        headers = f"retry-after: {block['retry_after']}\r\n" if "retry_after" in block else ""
        message = block.get("message", f"scripted error {block['error']}")
        await self.error(block["error"], message, block.get("type"), headers)

    async def stream(self, body: dict[str, Any], blocks: Blocks) -> None:
        self._head(200, "content-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n")
        async for event in stream_events(body, blocks):
            chunk = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
            self._writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await self._writer.drain()
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def _head(self, status: int, headers: str) -> None:
        self._writer.write(f"HTTP/1.1 {status} Scripted\r\n{headers}\r\n".encode())


def _parse_head(head: bytes) -> tuple[str, str, int]:
    lines = head.decode("latin-1").split("\r\n")
    method, target, _ = [*lines[0].split(" ", 2), "", "", ""][:3]
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if "transfer-encoding" in headers:
        return method, target, -1
    length = headers.get("content-length", "0")
    return method, target.partition("?")[0], int(length) if length.isdecimal() else -1


async def _run(port: int, log: Path | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with OfflineModel(port, log) as model:
        sys.stdout.write(f"offline model at {model.url}\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m karta_server.testing.offline_model", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port of 127.0.0.1; 0 takes a free one")
    parser.add_argument("--log", type=Path, help="file to append the requests to, as lines of JSON")
    arguments = parser.parse_args()
    asyncio.run(_run(arguments.port, arguments.log))


if __name__ == "__main__":
    main()
