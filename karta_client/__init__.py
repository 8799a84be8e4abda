"""The Python client of Karta.

    from karta import Karta

    print(Karta().send_sync("Hello!").text)

Names are loaded when they are first used, so that importing costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from karta_client.agents import Agents
    from karta_client.async_client import AsyncKarta
    from karta_client.async_session import AsyncSession
    from karta_client.client import Karta
    from karta_client.connection import Connection, open_connection
    from karta_client.errors import (
        ConflictError,
        DeadlineError,
        EmbeddedServerError,
        FailedPreconditionError,
        InputRequiredError,
        InternalError,
        InvalidArgumentError,
        KartaError,
        LimitError,
        NotFoundError,
        PermissionDeniedError,
        TurnCancelledError,
        TurnError,
        TurnFailedError,
        TurnInterruptedError,
        UnavailableError,
        UnsupportedError,
    )
    from karta_client.event import Event
    from karta_client.input import InputCallback, InputRequest
    from karta_client.participant import HumanAgent
    from karta_client.response import Response
    from karta_client.session import Session
    from karta_client.stream import AsyncStream, Stream
    from karta_client.trace import traceparent

__version__ = "0.1.0"

# gRPC reads this when it is first imported. Without it a forked child cannot
# open channels of its own.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")

_ERRORS = "karta_client.errors"
_MODULES = {
    "Agents": "karta_client.agents",
    "AsyncKarta": "karta_client.async_client",
    "AsyncSession": "karta_client.async_session",
    "AsyncStream": "karta_client.stream",
    "ConflictError": _ERRORS,
    "Connection": "karta_client.connection",
    "DeadlineError": _ERRORS,
    "EmbeddedServerError": _ERRORS,
    "Event": "karta_client.event",
    "FailedPreconditionError": _ERRORS,
    "HumanAgent": "karta_client.participant",
    "InputCallback": "karta_client.input",
    "InputRequest": "karta_client.input",
    "InputRequiredError": _ERRORS,
    "InternalError": _ERRORS,
    "InvalidArgumentError": _ERRORS,
    "Karta": "karta_client.client",
    "KartaError": _ERRORS,
    "LimitError": _ERRORS,
    "NotFoundError": _ERRORS,
    "PermissionDeniedError": _ERRORS,
    "Response": "karta_client.response",
    "Session": "karta_client.session",
    "Stream": "karta_client.stream",
    "TurnCancelledError": _ERRORS,
    "TurnError": _ERRORS,
    "TurnFailedError": _ERRORS,
    "TurnInterruptedError": _ERRORS,
    "UnavailableError": _ERRORS,
    "UnsupportedError": _ERRORS,
    "open_connection": "karta_client.connection",
    "traceparent": "karta_client.trace",
}

__all__ = [
    "Agents",
    "AsyncKarta",
    "AsyncSession",
    "AsyncStream",
    "ConflictError",
    "Connection",
    "DeadlineError",
    "EmbeddedServerError",
    "Event",
    "FailedPreconditionError",
    "HumanAgent",
    "InputCallback",
    "InputRequest",
    "InputRequiredError",
    "InternalError",
    "InvalidArgumentError",
    "Karta",
    "KartaError",
    "LimitError",
    "NotFoundError",
    "PermissionDeniedError",
    "Response",
    "Session",
    "Stream",
    "TurnCancelledError",
    "TurnError",
    "TurnFailedError",
    "TurnInterruptedError",
    "UnavailableError",
    "UnsupportedError",
    "open_connection",
    "traceparent",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
