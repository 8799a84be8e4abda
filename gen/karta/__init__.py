"""Karta: `karta.v1` is the contract, and the names beside it are those of the client, karta_client.

The client is loaded when one of its names is first used: `from karta import v1` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from karta_client import (
        Agents,
        AsyncKarta,
        AsyncSession,
        AsyncStream,
        ConflictError,
        Connection,
        DeadlineError,
        EmbeddedServerError,
        Event,
        FailedPreconditionError,
        HumanAgent,
        InputCallback,
        InputRequest,
        InputRequiredError,
        InternalError,
        InvalidArgumentError,
        Karta,
        KartaError,
        LimitError,
        NotFoundError,
        PermissionDeniedError,
        Response,
        Session,
        Stream,
        TurnCancelledError,
        TurnError,
        TurnFailedError,
        TurnInterruptedError,
        UnavailableError,
        UnsupportedError,
        open_connection,
        traceparent,
    )

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
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import karta_client

    return getattr(karta_client, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "v1"])
