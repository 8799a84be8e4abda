"""What the request log says about a call: no content of messages, ever."""

import json
import logging
import re
import time
from dataclasses import dataclass, field

from karta_server.ids import new_id

_log = logging.getLogger("karta_server.calls")
_PLAIN = re.compile(r"[\w.:/@+-]+\Z", re.ASCII)


@dataclass(slots=True)
class CallRecord:
    """One call, counted while it runs."""

    method: str
    trace_id: str = ""
    request: str = field(default_factory=new_id)
    """The id of this call in the log, and in an INTERNAL error."""
    received_messages: int = 0
    received_bytes: int = 0
    sent_messages: int = 0
    sent_bytes: int = 0
    started: float = field(default_factory=time.perf_counter)

    def received(self, data: bytes) -> None:
        """Count a message of the client."""
        self.received_messages += 1
        self.received_bytes += len(data)

    def sent(self, data: bytes) -> None:
        """Count a message to the client."""
        self.sent_messages += 1
        self.sent_bytes += len(data)

    def write(self, code: str, reason: str = "") -> None:
        """Log the call, which has ended, as one line of key=value."""
        if not _log.isEnabledFor(logging.INFO):
            return
        values = {
            "method": self.method,
            "code": code,
            "reason": reason,
            "ms": f"{(time.perf_counter() - self.started) * 1000:.1f}",
            "received": f"{self.received_messages}/{self.received_bytes}B",
            "sent": f"{self.sent_messages}/{self.sent_bytes}B",
            "trace": self.trace_id,
            "request": self.request,
        }
        _log.info("call %s", " ".join(f"{key}={_quoted(value)}" for key, value in values.items() if value))

    def defect(self, failure: BaseException) -> None:
        """Log a failure that nobody has named, with its traceback."""
        _log.error("call failed method=%s request=%s", _quoted(self.method), self.request, exc_info=failure)


def _quoted(value: str) -> str:
    # The method is the client's text until a handler is found: no line breaks into the log.
    return value if _PLAIN.match(value) else json.dumps(value)
