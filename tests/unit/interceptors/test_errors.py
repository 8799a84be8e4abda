"""The table of codes against the contract, and errors as messages."""

import re
from pathlib import Path

import grpc
import pytest

from karta import v1
from karta_server.error_codes import CODE_OF, to_error
from karta_server.errors import KartaError
from karta_server.interceptors.errors import STATUS_OF, cut, grpc_code, status

PROTO = Path(__file__).parents[3] / "proto" / "karta" / "v1" / "error.proto"
VALUE = re.compile(r"((?:  //[^\n]*\n)+)  (ERROR_REASON_\w+) = (\d+);")


def documented() -> dict[str, str]:
    """The word that the comment of each value begins with."""
    values = VALUE.findall(PROTO.read_text())
    return {name: re.split(r"[.,]", comment.strip().removeprefix("// "))[0] for comment, name, _ in values}


def test_every_reason_has_the_code_that_its_comment_says():
    words = documented()
    assert words.pop("ERROR_REASON_UNSPECIFIED") == "Never sent"
    assert set(words) == {name for name in v1.ErrorReason.keys() if name != "ERROR_REASON_UNSPECIFIED"}  # noqa: SIM118
    assert words == {v1.ErrorReason.Name(reason): code.name for reason, code in STATUS_OF.items()}


def test_table_has_every_reason():
    assert set(CODE_OF) == set(v1.ErrorReason.values()) - {v1.ERROR_REASON_UNSPECIFIED}


def test_to_error_keeps_what_a_named_failure_says():
    error = to_error(KartaError(v1.ERROR_REASON_QUEUE_FULL, "Full.", limit=3))
    assert error == v1.Error(code=8, reason=v1.ERROR_REASON_QUEUE_FULL, message="Full.", metadata={"limit": "3"})


def test_to_error_says_nothing_of_a_defect():
    error = to_error(ValueError("secret"), request="r1")
    assert (error.code, error.reason, dict(error.metadata)) == (13, v1.ERROR_REASON_INTERNAL, {"request": "r1"})
    assert "secret" not in error.message


def test_to_error_takes_text_that_is_none():
    error = to_error(KartaError(v1.ERROR_REASON_CONFIG_INVALID, "bad \udcff", file="a\udcffb"))
    assert error.message == "bad ?"
    assert error.metadata["file"] == "a?b"


@pytest.mark.parametrize("code", [0, 99])
def test_an_error_without_a_failing_code_is_internal(code):
    assert grpc_code(v1.Error(code=code)) is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("reason", sorted(CODE_OF))
def test_status_fits_in_a_header(reason):
    metadata = {f"{'名' * 200}{n}": "名" * 5000 for n in range(100)}
    result = status(v1.Error(code=CODE_OF[reason], reason=reason, message="名" * 5000, metadata=metadata))
    assert result.ByteSize() <= 5000
    assert result.details[0].type_url.endswith("ErrorInfo")


def test_cut_keeps_whole_characters():
    assert cut("名名名", 9) == "名名名"
    assert cut("名名名名", 9) == "名名…"
