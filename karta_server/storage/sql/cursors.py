"""Cursors of lists: the sort key of the last item, so that change elsewhere in the list does not move them."""

import base64
import json

from karta import v1
from karta_server.errors import KartaError

_MAX_CHARACTERS = 2_048
_MAX_NUMBER = 2**63


def encode(kind: str, *key: str | int) -> str:
    """Return the cursor behind the item with this key, in lists of this kind."""
    text = json.dumps([kind, *key], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(kind: str, cursor: str, *types: type[str] | type[int]) -> tuple[str | int, ...]:
    """Return the key in a cursor that `encode` made for this kind. Raises KartaError FIELD_INVALID."""
    try:
        found, *key = _parse(cursor)
        if found == kind and len(key) == len(types) and all(map(_is_key, key, types)):
            return tuple(key)
    except (ValueError, TypeError, RecursionError):
        pass
    raise KartaError(
        v1.ERROR_REASON_FIELD_INVALID,
        "page_token is not one that this list returned. Give next_page_token of the page before as it was, "
        "or leave page_token empty to begin at the first page.",
        field="page_token",
    )


def _parse(cursor: str) -> list[str | int]:
    if len(cursor) > _MAX_CHARACTERS:
        raise ValueError
    data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    return list(json.loads(data))


def _is_key(value: object, kind: type[str] | type[int]) -> bool:
    if isinstance(value, str):
        value.encode()  # A lone surrogate is no text for a database.
        return kind is str
    return type(value) is int and kind is int and 0 <= value < _MAX_NUMBER
