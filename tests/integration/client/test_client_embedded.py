"""The server that comes and goes with its users."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from project_programs import PlainServer, Programs, processes_of, server_pid, wait_until

from karta_client import AsyncKarta, EmbeddedServerError, Karta, open_connection
from karta_client.calls import server_info
from karta_client.embedded import socket_path

SAY = """
import json, pathlib, sys
from karta import Karta
app = Karta()
text = app.send_sync("Hello!").text
print(json.loads(pathlib.Path(".karta/server.json").read_text())["pid"], text, flush=True)
"""


def test_hello_world_starts_a_server_that_goes_with_it(project: Path, programs: Programs) -> None:
    out = programs.run(SAY, project)
    assert out.split(" ", 1)[1] == "echo[1]: Hello!\n"
    wait_until(lambda: not processes_of(project), "the server has ended")
    assert "error" not in (project / ".karta" / "server.log").read_text().lower()


def test_a_second_karta_of_the_process_shares_the_server(project: Path) -> None:
    with Karta(project=project) as first:
        first.send_sync("one")
        pid = server_pid(project)
        with Karta(project=project) as second:
            second.send_sync("two")
        assert first.send_sync("three").text == "echo[1]: three"
        assert processes_of(project) == [pid]


def test_another_process_joins(project: Path, programs: Programs) -> None:
    with Karta(project=project) as app:
        app.send_sync("one")
        pid = server_pid(project)
        assert programs.run(SAY, project).split()[0] == str(pid)
        assert app.send_sync("two").text == "echo[1]: two"


def test_a_plain_server_is_joined_and_left_alone(project: Path, plain_server: PlainServer) -> None:
    with Karta(project=project) as app:
        app.send_sync("one")
        assert app.connection().address == plain_server.address
        assert processes_of(project) == [server_pid(project)]
    assert plain_server.alive


async def test_a_plain_server_that_moves_is_found_again(project: Path, plain_server: PlainServer) -> None:
    with Karta(project=project) as app:
        session = app.session()
        session.send_sync("one")
        await session.send("two")
        before = plain_server.address
        await asyncio.to_thread(plain_server.kill)
        plain_server.address = "127.0.0.1:0"
        await asyncio.to_thread(plain_server.start)
        assert (await session.send("three")).text == "echo[3]: three"
        assert session.send_sync("four").text == "echo[4]: four"
        assert app.connection().address == plain_server.address != before
        await app.aclose()


def test_programs_that_start_at_once_share_one_server(project: Path, programs: Programs) -> None:
    started = [programs.start(SAY + "sys.stdin.read()", project) for _ in range(4)]
    lines = [program.stdout.readline() for program in started if program.stdout]
    assert len({line.split()[0] for line in lines}) == 1, lines
    for program in started:
        programs.finish(program)


def test_threads_with_a_karta_of_their_own(project: Path) -> None:
    texts: list[str] = []

    def use(number: int) -> None:
        with Karta(project=project) as app:
            texts.append(app.send_sync(f"n{number}").text)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == [f"echo[1]: n{number}" for number in range(6)]


def test_threads_share_one_karta(project: Path) -> None:
    texts: list[str] = []
    with Karta(project=project) as app:
        threads = [threading.Thread(target=lambda: texts.append(app.send_sync("x").text)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(processes_of(project)) == 1
    assert texts == ["echo[1]: x"] * 6


async def test_inside_a_running_loop(project: Path) -> None:
    async with AsyncKarta(project=project) as twin:
        with Karta(project=project) as app:
            assert app.send_sync("blocking").text == "echo[1]: blocking"
            assert (await app.send("awaited")).text == "echo[1]: awaited"
            texts = [event.text async for event in app.stream("streamed") if event.type == "text"]
            assert "".join(texts) == "echo[1]: streamed"
            assert (await twin.send("twin")).text == "echo[1]: twin"
            await app.aclose()


def test_one_karta_in_several_loops(project: Path) -> None:
    with Karta(project=project) as app:
        for _ in range(3):
            assert asyncio.run(app.send("x")).text == "echo[1]: x"
        assert len(app._twins) == 1


FORK = """
import os, sys
from karta import Karta
app = Karta()
session = app.session(metadata={"k": "v"})
session.send_sync("parent")
stream = session.watch()
next(stream)
pid = os.fork()
if pid == 0:
    print("child", session.send_sync("child").text, flush=True)
    app.close()
    os._exit(0)
print("status", os.waitpid(pid, 0)[1])
print("parent", session.send_sync("again").text)
stream.close()
print(app._connection.inherited)
"""


def test_after_a_fork_both_go_on(project: Path, programs: Programs) -> None:
    out = programs.run(FORK, project)
    assert out.splitlines() == ["child echo[2]: child", "status 0", "parent echo[3]: again", "False"]


FORK_AFTER_ASYNCIO = """
import asyncio, os, threading
from karta import Karta
app = Karta()
session = app.session(metadata={"k": "v"})
asyncio.run(session.send("awaited"))
watching = threading.Event()
def watch():
    for event in session.watch():
        watching.set()
threading.Thread(target=watch, daemon=True).start()
watching.wait()
pid = os.fork()
if pid == 0:
    print("child", session.send_sync("child").text, asyncio.run(app.send("awaited")).text, flush=True)
    os._exit(0)
print("status", os.waitpid(pid, 0)[1], session.send_sync("again").text)
"""


def test_after_asyncio_and_beside_a_watching_thread_a_fork_works(project: Path, programs: Programs) -> None:
    out = programs.run(FORK_AFTER_ASYNCIO, project)
    assert out.splitlines() == ["child echo[2]: child echo[1]: awaited", "status 0 echo[3]: again"]


UNCLOSED = """
import asyncio
from karta import AsyncKarta, Karta
app, twin = Karta(), AsyncKarta()
stream = app.stream("x")
print(next(stream).type)
async def main():
    async for event in twin.stream("x"):
        print(event.type)
        break
asyncio.run(main())
asyncio.run(main())
"""


def test_nothing_has_to_be_closed_at_the_end(project: Path, programs: Programs) -> None:
    assert programs.run(UNCLOSED, project).split() == ["message_received"] * 3


FORK_AND_LEAVE = """
import os, sys, time
from karta import Karta
app = Karta()
app.send_sync("parent")
if os.fork() == 0:
    os.close(0); os.close(1); os.close(2)
    time.sleep(600)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_a_forked_child_that_does_not_use_it_keeps_nothing_alive(project: Path, programs: Programs) -> None:
    program = programs.start(FORK_AND_LEAVE, project)
    assert program.stdout
    parent = int(program.stdout.readline())
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    child = next(int(pid) for pid in children if int(pid) not in processes_of(project))
    try:
        programs.finish(program)
        wait_until(lambda: not processes_of(project), "the server has ended")
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_kill_9_of_the_program_leaves_nothing(project: Path, programs: Programs) -> None:
    program = programs.start(SAY + "sys.stdin.read()", project)
    assert program.stdout
    pid = int(program.stdout.readline().split()[0])
    assert processes_of(project) == [pid]
    program.kill()
    wait_until(lambda: not processes_of(project), "the server has ended")


def test_a_karta_that_was_never_closed_leaves_no_zombie(project: Path) -> None:
    app = Karta(project=project)
    app.send_sync("one")
    pid = server_pid(project)
    app.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the server has ended and was reaped")
    wait_until(lambda: all(t.name != "karta-embedded-server" for t in threading.enumerate()), "no thread is left")
    assert app.send_sync("again").text == "echo[1]: again"
    app.close()


def test_a_server_that_was_killed_is_replaced(project: Path) -> None:
    with Karta(project=project) as app:
        session = app.session(metadata={"a": "b"})
        session.send_sync("one")
        pid = server_pid(project)
        os.kill(pid, signal.SIGKILL)
        assert session.send_sync("two").text == "echo[2]: two"
        assert server_pid(project) != pid


def test_a_stale_record_is_ignored(project: Path) -> None:
    state = project / ".karta"
    state.mkdir()
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    record = {"pid": gone, "address": "127.0.0.1:1", "hold": str(state / "hold.sock"), "version": "0"}
    (state / "server.json").write_text(json.dumps(record))
    with Karta(project=project) as app:
        assert app.send_sync("x").text == "echo[1]: x"


def test_a_server_that_does_not_start_says_why(project: Path) -> None:
    (project / "karta.jsonc").write_text('{"harness": }')
    with Karta(project=project) as app, pytest.raises(EmbeddedServerError) as caught:
        app.send_sync("x")
    assert "karta.jsonc, line 1, column 13" in caught.value.log
    assert caught.value.reason == "EMBEDDED_SERVER_FAILED"
    assert processes_of(project) == []


def test_no_folder(project: Path) -> None:
    with Karta(project=project / "none") as app, pytest.raises(EmbeddedServerError, match="no folder"):
        app.send_sync("x")


@pytest.fixture
def deep_project(project: Path) -> Iterator[Path]:
    deep = project / ("d" * 90)
    deep.mkdir()
    (deep / "karta.jsonc").write_text((project / "karta.jsonc").read_text())
    yield deep
    wait_until(lambda: not processes_of(deep), "the server is gone")


def test_a_path_too_long_for_a_socket(deep_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Karta(project=deep_project) as app:
        assert app.send_sync("x").text == "echo[1]: x"
        place = socket_path(deep_project / ".karta")
        assert place.parent.parent == tmp_path
        assert place.is_socket()
    wait_until(lambda: not place.exists(), "the socket is gone")


async def test_open_connection_has_an_answering_server(project: Path) -> None:
    connection = await open_connection(project=project)
    try:
        info = await connection.call(server_info())
        assert info.server.default_harness == "scripted"
    finally:
        await connection.close()


async def test_a_cancelled_start_holds_nothing(project: Path) -> None:
    app = AsyncKarta(project=project)
    sending = asyncio.create_task(app.send("x"))
    await asyncio.sleep(0)
    while not processes_of(project):  # noqa: ASYNC110 - the process says nothing
        await asyncio.sleep(0.01)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await app.aclose()
    begin = time.monotonic()
    while processes_of(project):
        assert time.monotonic() < begin + 15
        await asyncio.sleep(0.05)


async def test_the_embedded_server_keeps_its_state_in_the_project(project: Path) -> None:
    (project / "karta.jsonc").write_text('{"state": "elsewhere", "harness": {"name": "scripted"}}')
    async with AsyncKarta(project=project) as app:
        assert (await app.send("hello")).text == "echo[1]: hello"
        assert (project / ".karta" / "server.json").exists()
        assert not (project / "elsewhere").exists()
