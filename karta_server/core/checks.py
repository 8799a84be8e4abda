"""Checks of what a caller sends. Each failure names the field and the bound."""

import json
import re
from collections.abc import Iterable, Mapping

from google.protobuf import duration_pb2

from karta import v1
from karta_server.core.caller import Caller
from karta_server.errors import KartaError

_PARTICIPANT_ID = re.compile(r"[A-Za-z0-9._@-]{1,128}\Z")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


def tenant(caller: Caller, tenant_id: str) -> str:
    """Return the tenant that the request means; another tenant's does not exist."""
    if tenant_id in ("", caller.tenant_id):
        return caller.tenant_id
    raise KartaError(
        v1.ERROR_REASON_TENANT_NOT_FOUND,
        f"There is no tenant {tenant_id!r} for you; leave tenant_id empty to mean your own.",
        tenant_id=tenant_id[:128],
    )


def required(field: str, value: object) -> None:
    """Refuse an empty value."""
    if not value:
        raise KartaError(v1.ERROR_REASON_FIELD_REQUIRED, f"{field} is required and was empty.", field=field)


def invalid(field: str, why: str, allowed: Iterable[str] = ()) -> KartaError:
    """Return the error of a field with a value that is not allowed."""
    known = ", ".join(allowed)
    metadata = {"field": field} | ({"allowed": known} if known else {})
    message = f"{field} {why}" + (f" Allowed: {known}." if known else "")
    return KartaError(v1.ERROR_REASON_FIELD_INVALID, message, **metadata)


def bounded(field: str, actual: int, limit: int, unit: str = "bytes") -> None:
    """Refuse what is larger than its limit."""
    if actual > limit:
        raise KartaError(
            v1.ERROR_REASON_FIELD_TOO_LARGE,
            f"{field} has {actual} {unit}; the limit is {limit}.",
            field=field,
            limit=limit,
            actual=actual,
        )


def text(field: str, value: str, limit_bytes: int) -> None:
    """Refuse text that is too long or has more than one line."""
    bounded(field, len(value.encode()), limit_bytes)
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise invalid(field, "may not contain line breaks or control characters.")


def uuid(field: str, value: str) -> None:
    """Refuse what cannot be an id that the server made."""
    required(field, value)
    if not _UUID.match(value):
        raise invalid(field, "is not an id that this server makes (a UUID in lower case).")


def request_id(value: str, limits: v1.Limits) -> None:
    """Check a request_id; it is optional."""
    text("request_id", value, limits.max_request_id_bytes)


def metadata(field: str, entries: Mapping[str, str], limits: v1.Limits) -> None:
    """Check what an application knows a session by."""
    bounded(field, len(entries), limits.max_metadata_entries, "entries")
    for key, value in entries.items():
        if not key:
            raise invalid(field, "may not have an empty key.")
        shown = key if len(key) <= 64 else key[:64] + "…"
        bounded(f"{field} key {shown!r}", len(key.encode()), limits.max_metadata_key_bytes)
        bounded(f"{field}[{shown!r}]", len(value.encode()), limits.max_metadata_value_bytes)


def message(field: str, value: v1.Message, limits: v1.Limits) -> None:
    """Check what is said to an agent."""
    required(f"{field}.parts", value.parts)
    for index, part in enumerate(value.parts):
        required(f"{field}.parts[{index}].text", part.text.strip())
    bounded(field, sum(len(part.text.encode()) for part in value.parts), limits.max_message_bytes)


def participant(field: str, value: v1.Participant) -> None:
    """Check a participant that is to join."""
    required(f"{field}.participant_id", value.participant_id)
    if not _PARTICIPANT_ID.match(value.participant_id):
        raise invalid(f"{field}.participant_id", "must be 1 to 128 letters, digits or any of `._@-`.")
    text(f"{field}.display_name", value.display_name, 256)
    enum(f"{field}.kind", v1.ParticipantKind, value.kind)
    enum(f"{field}.role", v1.ParticipantRole, value.role)


def enum(field: str, kind: type, value: int) -> None:
    """Refuse a number that the enum does not have."""
    names: dict[str, int] = dict(kind.items())  # type: ignore[attr-defined]
    if value not in names.values():
        raise invalid(field, f"has no value {value}.", [name for name, number in names.items() if number])


def event_kinds(kinds: Iterable[str]) -> frozenset[str]:
    """Return the filter; every name must be one of Event's kinds."""
    known = [field.name for field in v1.Event.DESCRIPTOR.oneofs_by_name["kind"].fields]
    for name in kinds:
        if name not in known:
            raise invalid("kinds", f"has no event type {name!r}.", known)
    return frozenset(kinds)


def seconds(field: str, value: duration_pb2.Duration, least: float, most: float) -> float:
    """Return a duration in seconds, which must lie within the bounds."""
    total = value.seconds + value.nanos / 1e9
    if not least <= total <= most:
        raise invalid(field, f"is {total:g} s; it must be {least:g} s to {most:g} s.")
    return total


def page_size(size: int, limits: v1.Limits) -> int:
    """Return how many items a page may have."""
    bounded("page_size", size, limits.max_page_size, "items")
    return size or min(50, limits.max_page_size)


def json_object(field: str, value: str) -> None:
    """Refuse text that is not a JSON object."""
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise invalid(field, f"is not JSON: {error}.") from None
    if not isinstance(parsed, dict):
        raise invalid(field, "must be a JSON object.")
