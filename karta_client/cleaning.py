"""Making text of models, tools and servers harmless for a terminal."""

import re
import unicodedata

_SEQUENCES = re.compile(
    "(?:\x1b[P\\]X^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)?"  # strings: titles, links, clipboard
    "|(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]?"  # colours, cursor, erase
    "|\x1b[ -/]*[0-~]?"  # the rest
)
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_HIDDEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})


def clean(text: str) -> str:
    """Return text that a terminal only shows: no control sequences, no control characters but newline and tab.

    What models and tools say must not move the cursor, repaint an approval,
    reorder letters, set a title or write the clipboard.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNSAFE.sub("", _SEQUENCES.sub("", text))


def visible(text: str) -> str:
    """Return text with everything that cannot be seen written as an escape, so that nothing hides in an approval."""
    return "".join(
        character if character == "\n" or unicodedata.category(character) not in _HIDDEN else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
