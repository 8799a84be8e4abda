"""`karta-runtime dev-serve` as a process."""

import json
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from serving import dev_serve

from karta import v1
from karta.v1.server_service_pb2_grpc import ServerServiceStub
from karta.v1.session_service_pb2_grpc import SessionServiceStub
from karta.v1.turn_service_pb2_grpc import TurnServiceStub
from karta_server import hold

USER = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(1, flush=True); input()"


def info(address: str) -> v1.ServerInfo:
    with grpc.insecure_channel(address) as channel:
        return ServerServiceStub(channel).GetServerInfo(v1.GetServerInfoRequest(), timeout=10).server


def start_long_turn(channel: grpc.Channel, seconds: float) -> v1.Turn:
    """Start a turn that runs for so long, and return when it does."""
    session = SessionServiceStub(channel).CreateSession(v1.CreateSessionRequest(), timeout=10).session
    message = v1.Message(parts=[v1.Part(text=f'SCRIPT:[[{{"text": "begun"}}, {{"delay": {seconds}}}]]END')])
    start = v1.StartTurnRequest(session_id=session.session_id, message=message)
    stream = TurnServiceStub(channel).RunTurn(v1.RunTurnRequest(start=start), timeout=30)
    for frame in stream:
        for event in frame.events:
            if event.WhichOneof("kind") == "text":
                stream.cancel()
                return v1.Turn(session_id=session.session_id, turn_id=event.turn_id)
    raise AssertionError("the turn ended without a word")


def state_after_restart(project, environment, turn: v1.Turn) -> str:
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        with grpc.insecure_channel(served.address) as channel:
            request = v1.GetTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id)
            found = TurnServiceStub(channel).GetTurn(request, timeout=10).turn
        assert served.end(signal.SIGTERM) == 0
    return v1.TurnState.Name(found.state)


def connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def test_serves_on_a_free_port_and_says_so_everywhere(project, environment):
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        assert served.project == str(project)
        host, port = served.address.rsplit(":", 1)
        assert host == "127.0.0.1"
        assert int(port) > 0
        assert info(served.address).limits.max_participants == 64
        state = project / ".karta"
        record = json.loads((state / "server.json").read_text())
        assert record["pid"] == served.process.pid
        assert (record["address"], record["hold"]) == (served.address, "")
        assert record["version"]
        assert (state / ".gitignore").read_text() == "*\n"
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        assert stat.S_IMODE((state / "server.json").stat().st_mode) == 0o600
        assert served.end(signal.SIGTERM) == 0
        assert served.process.stdout.read() == ""
        assert not (state / "server.json").exists()


def test_signal_lets_a_running_turn_finish(project, environment):
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        with grpc.insecure_channel(served.address) as channel:
            turn = start_long_turn(channel, 1.5)
        assert served.end(signal.SIGTERM) == 0
    assert state_after_restart(project, environment, turn) == "TURN_STATE_COMPLETED"


def test_turn_that_outlasts_the_drain_is_interrupted(project, environment):
    environment["KARTA_DRAIN_SECONDS"] = "0.5"
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        with grpc.insecure_channel(served.address) as channel:
            turn = start_long_turn(channel, 60)
        assert served.end(signal.SIGTERM) == 0
    assert state_after_restart(project, environment, turn) == "TURN_STATE_INTERRUPTED"


def test_second_signal_does_not_wait(project, environment):
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        with grpc.insecure_channel(served.address) as channel:
            turn = start_long_turn(channel, 60)
        begun = time.monotonic()
        served.process.send_signal(signal.SIGINT)
        # server.json goes first of all, so the signal has come.
        while (project / ".karta" / "server.json").exists():
            time.sleep(0.01)
        assert served.end(signal.SIGINT) == 0
        assert time.monotonic() - begun < 15
    assert state_after_restart(project, environment, turn) == "TURN_STATE_INTERRUPTED"


def test_unix_socket_is_private_and_goes_with_the_server(project, environment):
    path = project / "k.sock"
    with dev_serve(project, environment, "--listen", f"unix:{path}") as served:
        assert served.address == f"unix:{path}"
        assert info(served.address).version
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        assert served.end(signal.SIGINT) == 0
    assert not path.exists()


def test_second_server_is_refused(project, environment, run):
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        second = run("karta_server.cli", "dev-serve", project, "--listen", "127.0.0.1:0", "--harness", "scripted")
        assert second.returncode == 75
        assert str(served.process.pid) in second.stderr
        assert "Traceback" not in second.stderr
        assert second.stdout == ""
        assert info(served.address).version


def test_killed_server_leaves_nothing_in_the_way(project, environment):
    path = project / "k.sock"
    with dev_serve(project, environment, "--listen", f"unix:{path}") as served:
        served.end(signal.SIGKILL)
    assert path.exists()
    with dev_serve(project, environment, "--listen", f"unix:{path}") as served:
        assert info(served.address).version


def test_served_socket_of_another_is_not_taken_over(project, environment, run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    path = tmp_path / "k.sock"
    with dev_serve(project, environment, "--listen", f"unix:{path}") as served:
        second = run("karta_server.cli", "dev-serve", other, "--listen", f"unix:{path}", "--harness", "scripted")
        assert second.returncode == 78
        assert "Another program serves on" in second.stderr
        assert info(served.address).version


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--listen", "0.0.0.0:7400"], 78, "SSH tunnel"),
        (["--listen", "nowhere"], 78, "use HOST:PORT"),
        (["--log-level", "loud"], 78, "allowed: debug, info"),
        (["--state", "/dev/null/x"], 78, "cannot be written"),
        (["--color"], 2, "No such option"),
    ],
)
def test_mistakes_end_with_a_code_and_a_hint(project, run, options, code, words):
    ended = run("karta_server.cli", "dev-serve", project, *options)
    assert ended.returncode == code
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_mistake_in_the_file_has_a_place(project, run):
    (project / "karta.jsonc").write_text('{\n  "agnet": "x"\n}')
    ended = run("karta_server.cli", "dev-serve", project)
    assert ended.returncode == 78
    assert "line 2, column 3" in ended.stderr
    assert "did you mean 'agent'?" in ended.stderr


def test_port_in_use_is_an_error_and_leaves_no_record(project, run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run("karta_server.cli", "dev-serve", project, "--listen", address, "--harness", "scripted")
    assert ended.returncode == 78
    assert address in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (project / ".karta" / "server.json").exists()


def test_embedded_server_ends_with_its_last_user(project, environment):
    with dev_serve(project, environment, "--embedded") as served:
        record = json.loads((project / ".karta" / "server.json").read_text())
        assert served.address == f"unix:{project}/.karta/karta.sock"
        assert stat.S_IMODE(Path(record["hold"]).stat().st_mode) & 0o077 == 0
        first, second = connect(record["hold"]), connect(record["hold"])
        first.close()
        time.sleep(hold.LAST_SECONDS + 0.5)
        assert served.process.poll() is None
        second.close()
        assert served.process.wait(hold.LAST_SECONDS + 10) == 0
    assert sorted(path.name for path in (project / ".karta").iterdir() if path.is_socket()) == []
    assert not (project / ".karta" / "server.json").exists()


def test_embedded_server_outlives_the_kill_of_one_user_alone(project, environment):
    with dev_serve(project, environment, "--embedded") as served:
        path = json.loads((project / ".karta" / "server.json").read_text())["hold"]
        user = subprocess.Popen([sys.executable, "-c", USER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert user.stdout.read(1)
        user.kill()
        user.communicate()
        # Within the time that another user has.
        with connect(path):
            time.sleep(hold.LAST_SECONDS + 0.5)
            assert served.process.poll() is None
        assert served.process.wait(hold.LAST_SECONDS + 10) == 0


def test_embedded_server_in_a_deep_folder(tmp_path, environment):
    project = tmp_path / ("deep" * 25)
    project.mkdir()
    with dev_serve(project, environment, "--embedded") as served:
        path = json.loads((project / ".karta" / "server.json").read_text())["hold"]
        assert len(served.address) < 107
        assert info(served.address).version
        with connect(path):
            assert served.end(signal.SIGTERM) == 0
    assert not Path(path).parent.exists()
