"""The JSONC parser."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karta_server.jsonc import JsoncError, parse

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_reads_all_that_json_reads(value):
    for indent in (None, 2):
        assert parse(json.dumps(value, indent=indent)).value == value
        assert parse(json.dumps(value, indent=indent, ensure_ascii=False)).value == value


@given(st.text(max_size=40))
def test_other_text_is_refused_or_read_never_worse(text):
    try:
        value = parse(text).value
    except JsoncError:
        return
    json.dumps(value, allow_nan=False)


def test_comments_and_trailing_commas():
    text = """// first
    {
      "a": [1, 2, /* inside */ 3,], // behind
      /* over
         lines */
      "url": "http://x/*y*/", "b": {"c": null,},
    } // last"""
    document = parse(text)
    assert document.value == {"a": [1, 2, 3], "url": "http://x/*y*/", "b": {"c": None}}
    assert document.places["a",] == (3, 7)
    assert document.places["a", 2] == (3, 32)
    assert document.places["b", "c"] == (6, 37)


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("", 1, 1, "A value is expected"),
        ('{\n  "a": 1\n  "b": 2\n}', 3, 3, '"," or "}" is expected'),
        ('{\n  "a": tru\n}', 2, 8, "A value is expected"),
        ('{"a" 1}', 1, 6, '":" is expected'),
        ("{a: 1}", 1, 2, "A key in double quotes"),
        ('{"a": 1,\n "a": 2}', 2, 2, "twice"),
        ('{"a": "x', 1, 7, "not closed"),
        ('{"a": "\\x"}', 1, 7, "Not a value"),
        ("/* x", 1, 1, "comment that is not closed"),
        ("{} {}", 1, 4, "behind the end"),
        ("[1,,2]", 1, 4, "A value is expected"),
        ("[,]", 1, 2, "A value is expected"),
        ("NaN", 1, 1, "A value is expected"),
        ("01", 1, 1, "A value is expected"),
        ("1e999", 1, 1, "too large"),
        ("[" * 100, 1, 34, "nested deeper"),
        ('{"größe": x}', 1, 11, "A value is expected"),
    ],
)
def test_mistakes_have_a_place(text, line, column, words):
    with pytest.raises(JsoncError, match=words.replace("}", r"\}")) as caught:
        parse(text)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_numbers():
    assert parse("[0, -1, 1.5, 2e3]").value == [0, -1, 1.5, 2000.0]
    assert math.isclose(parse("1E-2").value, 0.01)
