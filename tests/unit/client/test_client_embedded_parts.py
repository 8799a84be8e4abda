"""Where the embedded server's socket and log are."""

import os
from pathlib import Path

import pytest

from karta_client import EmbeddedServerError, embedded, server_process
from karta_client.embedded import acquire, socket_path


def test_a_short_path_has_its_socket_in_the_state_folder() -> None:
    assert socket_path(Path("/p/.karta")) == Path("/p/.karta/karta.sock")


def test_a_long_path_has_it_in_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    state, other = Path("/" + "d" * 100), Path("/" + "e" * 100)
    place = socket_path(state)
    assert place == socket_path(state) != socket_path(other)
    assert place.parent.parent == tmp_path
    assert place.parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    state = Path("/" + "d" * 100)
    socket_path(state).parent.chmod(0o755)
    with pytest.raises(PermissionError, match="nobody else"):
        socket_path(state)
    socket_path(Path("/" + "e" * 100)).parent.rmdir()
    place = socket_path(state.with_name("f" * 100)).parent
    place.rmdir()
    place.symlink_to("/")
    with pytest.raises(PermissionError):
        socket_path(state.with_name("f" * 100))


def test_the_log_starts_anew_when_it_is_large(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(b"x" * 1000)
    with server_process.open_log(tmp_path) as opened:
        assert opened.tell() == 1000
    log.write_bytes(b"x" * (server_process.LOG_LIMIT_BYTES + 1))
    with server_process.open_log(tmp_path) as opened:
        assert opened.tell() == 0
        opened.write(b"new\n")
    assert server_process.tail(tmp_path) == "new"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}'])
def test_a_malformed_record_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "server.json").write_text(content)
    assert embedded._read_record(tmp_path / "server.json") is None


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(EmbeddedServerError, match="Cannot start"):
        acquire(tmp_path)


def test_a_failed_start_is_no_share(tmp_path: Path) -> None:
    (tmp_path / ".karta").write_text("not a folder")
    with pytest.raises(EmbeddedServerError, match="Cannot start"):
        acquire(tmp_path)
    assert embedded._servers == {}
