"""JSON with comments and trailing commas, read with the place of every value.

Strict otherwise: no unquoted or repeated keys, no NaN. Small on purpose: it
reads configuration, of at most a megabyte.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32

_SKIPPED = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.])", re.ASCII)
_WORD = re.compile(r"(?:true|false|null)\b")

Path = tuple[str | int, ...]


class JsoncError(ValueError):
    """Text that is not JSONC. `line` and `column` count from 1; columns count characters."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


@dataclass(frozen=True)
class Document:
    """A value and where it is written."""

    value: Any
    places: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Line and column of each member's key and each item, by its path from the top."""


def parse(text: str) -> Document:
    """Return what the text holds. Raises JsoncError."""
    return _Parser(text).document()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._places: dict[Path, tuple[int, int]] = {}

    def document(self) -> Document:
        value = self._value(())
        if self._next():
            self._fail("There is something behind the end of the value.")
        return Document(value, self._places)

    def _value(self, path: Path) -> Any:
        start = self._next()
        if len(path) > MAX_DEPTH:
            self._fail(f"Values are nested deeper than {MAX_DEPTH} levels.")
        if start == "{":
            return self._object(path)
        if start == "[":
            return self._array(path)
        for pattern in (_STRING, _NUMBER, _WORD):
            if match := pattern.match(self._text, self._at):
                return self._scalar(match)
        return self._fail("A string that is not closed." if start == '"' else "A value is expected here.")

    def _scalar(self, match: re.Match[str]) -> Any:
        try:
            value = json.loads(match[0])
        except ValueError as error:
            self._fail(f"Not a value: {error}.")
        if isinstance(value, float) and value in (float("inf"), float("-inf")):
            self._fail("The number is too large.")
        self._at = match.end()
        return value

    def _object(self, path: Path) -> dict[str, Any]:
        members: dict[str, Any] = {}
        self._at += 1
        while self._next() != "}":
            place = self._place()
            match = _STRING.match(self._text, self._at)
            if match is None:
                self._fail('A key in double quotes, or "}", is expected here.')
            key: str = self._key(match, members)
            self._places[*path, key] = place
            if self._next() != ":":
                self._fail('":" is expected behind the key.')
            self._at += 1
            members[key] = self._value((*path, key))
            self._comma("}")
        self._at += 1
        return members

    def _key(self, match: re.Match[str], members: dict[str, Any]) -> str:
        start = self._at
        key: str = self._scalar(match)
        if key in members:
            self._at = start
            self._fail(f"The key {key!r} is there twice.")
        return key

    def _array(self, path: Path) -> list[Any]:
        items: list[Any] = []
        self._at += 1
        while self._next() != "]":
            inside = (*path, len(items))
            self._places[inside] = self._place()
            items.append(self._value(inside))
            self._comma("]")
        self._at += 1
        return items

    def _comma(self, end: str) -> None:
        found = self._next()
        if found == ",":
            self._at += 1
        elif found != end:
            self._fail(f'"," or "{end}" is expected here.')

    def _next(self) -> str:
        """Skip blanks and comments; return the character there, or "" at the end."""
        match = _SKIPPED.match(self._text, self._at)
        self._at = match.end() if match else self._at
        if self._text.startswith("/*", self._at):
            self._fail("A comment that is not closed.")
        return self._text[self._at : self._at + 1]

    def _place(self) -> tuple[int, int]:
        line = self._text.count("\n", 0, self._at) + 1
        return line, self._at - (self._text.rfind("\n", 0, self._at) + 1) + 1

    def _fail(self, message: str) -> NoReturn:
        raise JsoncError(message, *self._place())
