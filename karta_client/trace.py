"""W3C trace context: the trace that calls belong to."""

from contextvars import ContextVar

traceparent: ContextVar[str] = ContextVar("karta_traceparent", default="")
"""The `traceparent` header of the calls made in this context, unless their Karta was given one; empty for none."""
