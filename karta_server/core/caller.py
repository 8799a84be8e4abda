"""Who calls."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a call runs; made by the interceptor, passed to core explicitly."""

    tenant_id: str
    """Whose data the call sees. Never empty."""
    principal: str
    """Who was authenticated: the scope of request_ids and the name in the audit. Never empty."""
    user_id: str
    """The user that sessions of this caller belong to. Never empty."""
    traceparent: str
    """W3C trace context of the call, version 00: the client's, or one made for it. Never empty."""
