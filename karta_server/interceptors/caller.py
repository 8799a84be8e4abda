"""The caller of the call that runs, for servicers; core gets it as an argument."""

from contextvars import ContextVar

from karta_server.core.caller import Caller

current_caller: ContextVar[Caller] = ContextVar("current_caller")


def caller() -> Caller:
    """Return who made this call. Only inside a handler, and in tasks that it started."""
    return current_caller.get()


def developer(traceparent: str) -> Caller:
    """Return the caller of a server without authentication: always the developer at the same machine."""
    return Caller(tenant_id="default", principal="developer", user_id="default", traceparent=traceparent)
