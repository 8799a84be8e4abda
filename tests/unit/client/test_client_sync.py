"""The blocking client over grpcio-testing's channel: every request as it goes out."""

import queue
import threading
from concurrent.futures import Future
from typing import Any

import grpc
import grpc_testing
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from karta import v1
from karta.v1 import agent_service_pb2, input_service_pb2, session_service_pb2, turn_service_pb2
from karta_client import (
    Event,
    FailedPreconditionError,
    InputRequiredError,
    Karta,
    NotFoundError,
    TurnFailedError,
    UnavailableError,
)
from karta_client.session import Session

SERVICES = {
    service.name: service
    for module in (agent_service_pb2, input_service_pb2, session_service_pb2, turn_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}


class Wire:
    """The server's end: takes calls one by one and answers them."""

    def __init__(self) -> None:
        self.channel = grpc_testing.channel(SERVICES.values(), grpc_testing.strict_real_time())
        self.app = Karta("127.0.0.1:1", channel=self.channel, reconnect_timeout=2.0)

    def do(self, action: Any, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Run it beside the test. The thread is a daemon: a test that fails must not wait for it."""
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(action(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        return future

    def take(self, method: str) -> tuple[Any, Any]:
        """The next call of "Service.Method": its request, and what answers it."""
        service, _, name = method.partition(".")
        _, request, rpc = self.channel.take_unary_unary(SERVICES[service].methods_by_name[name])
        return request, rpc

    def answer(self, method: str, response: Message) -> Any:
        request, rpc = self.take(method)
        rpc.terminate(response, (), grpc.StatusCode.OK, "")
        return request

    def fail(self, method: str, code: grpc.StatusCode, reason: str = "") -> Any:
        request, rpc = self.take(method)
        trailing: tuple[tuple[str, bytes], ...] = ()
        if reason:
            packed = any_pb2.Any()
            packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="karta.sh"))
            trailing = (("grpc-status-details-bin", status_pb2.Status(details=[packed]).SerializeToString()),)
        rpc.terminate(None, trailing, code, "no")
        return request

    def take_stream(self, name: str) -> tuple[Any, Any]:
        _, request, rpc = self.channel.take_unary_stream(SERVICES["TurnService"].methods_by_name[name])
        rpc.send_initial_metadata(())
        return request, rpc

    def session(self) -> Session:
        return Session(self.app, v1.Session(session_id="s"))


@pytest.fixture
def wire() -> Wire:
    return Wire()


def turn(state: v1.TurnState, **fields: Any) -> v1.Turn:
    return v1.Turn(session_id="s", turn_id="t", state=state, **fields)


def pending(name: str) -> v1.InputRequest:
    return v1.InputRequest(input_request_id=name, state=v1.INPUT_STATE_PENDING, title=f"May {name}?")


def test_a_session_with_metadata_is_reused_and_one_without_is_new(wire: Wire) -> None:
    made = wire.do(wire.app.session, metadata={"a": "b"}, agent="x")
    request = wire.answer("SessionService.CreateSession", v1.CreateSessionResponse(session=v1.Session(session_id="s1")))
    assert request.reuse == v1.SESSION_REUSE_LATEST
    assert (dict(request.metadata), request.agent) == ({"a": "b"}, "x")
    assert made.result(5).id == "s1"
    made = wire.do(wire.app.session)
    request = wire.answer("SessionService.CreateSession", v1.CreateSessionResponse())
    assert request.reuse == v1.SESSION_REUSE_NEVER
    made.result(5)


def test_a_repeated_call_keeps_its_request_id(wire: Wire) -> None:
    made = wire.do(wire.app.session, metadata={"a": "b"})
    first = wire.fail("SessionService.CreateSession", grpc.StatusCode.UNAVAILABLE)
    second = wire.fail("SessionService.CreateSession", grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    third = wire.answer("SessionService.CreateSession", v1.CreateSessionResponse())
    made.result(5)
    assert first.request_id
    assert first == second == third


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED]
)
def test_other_failures_are_not_repeated(wire: Wire, code: grpc.StatusCode) -> None:
    made = wire.do(wire.app.session)
    wire.fail("SessionService.CreateSession", code)
    assert made.exception(5).code == code.name  # type: ignore[union-attr]


def test_each_operation_has_a_request_id_of_its_own(wire: Wire) -> None:
    ids = set()
    for _ in range(3):
        done = wire.do(wire.session().delete)
        ids.add(wire.answer("SessionService.DeleteSession", v1.DeleteSessionResponse()).request_id)
        done.result(5)
    assert len(ids) == 3


def test_an_error_carries_the_servers_reason(wire: Wire) -> None:
    done = wire.do(wire.app.session, id="s")
    wire.fail("SessionService.GetSession", grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")
    error = done.exception(5)
    assert isinstance(error, NotFoundError)
    assert error.reason == "SESSION_NOT_FOUND"
    assert error.__cause__ is None or not isinstance(error.__cause__, grpc.RpcError)


def test_sending(wire: Wire) -> None:
    sent = wire.do(wire.session().send_sync, "hi", agent="billing", participant="alice", busy="reject")
    start = wire.answer("TurnService.StartTurn", v1.StartTurnResponse(turn=turn(v1.TURN_STATE_QUEUED)))
    assert start == v1.StartTurnRequest(
        request_id=start.request_id,
        session_id="s",
        message=v1.Message(parts=[v1.Part(text="hi")]),
        agent="billing",
        participant_id="alice",
        busy_policy=v1.BUSY_POLICY_REJECT,
    )
    waiting, rpc = wire.take("TurnService.WaitTurn")
    assert (waiting.session_id, waiting.turn_id) == ("s", "t")
    done = turn(v1.TURN_STATE_COMPLETED, text="hello", usage=v1.Usage(input_tokens=3))
    rpc.terminate(v1.WaitTurnResponse(turn=done), (), grpc.StatusCode.OK, "")
    response = sent.result(5)
    assert (response.text, response.usage.input_tokens, response.turn) == ("hello", 3, done)


def test_a_long_turn_is_waited_for_again(wire: Wire) -> None:
    sent = wire.do(wire.session().send_sync, "hi")
    wire.answer("TurnService.StartTurn", v1.StartTurnResponse(turn=turn(v1.TURN_STATE_RUNNING)))
    wire.fail("TurnService.WaitTurn", grpc.StatusCode.DEADLINE_EXCEEDED, "WAIT_TIMEOUT")
    wire.answer("TurnService.WaitTurn", v1.WaitTurnResponse(turn=turn(v1.TURN_STATE_COMPLETED, text="late")))
    assert sent.result(5).text == "late"


def test_a_failed_turn_raises(wire: Wire) -> None:
    sent = wire.do(wire.session().send_sync, "hi")
    wire.answer("TurnService.StartTurn", v1.StartTurnResponse(turn=turn(v1.TURN_STATE_RUNNING)))
    failure = v1.Error(code=3, reason=v1.ERROR_REASON_PROMPT_TOO_LONG, message="too long")
    wire.answer("TurnService.WaitTurn", v1.WaitTurnResponse(turn=turn(v1.TURN_STATE_FAILED, error=failure)))
    error = sent.exception(5)
    assert isinstance(error, TurnFailedError)
    assert (error.reason, error.turn.turn_id) == ("PROMPT_TOO_LONG", "t")


def test_the_callback_answers_all_that_wait_oldest_first(wire: Wire) -> None:
    asked = []

    def allow(request: Any) -> v1.InputResponse:
        asked.append(request.input_request_id)
        answer: v1.InputResponse = request.allow()
        return answer

    sent = wire.do(wire.session().send_sync, "hi", on_input=allow, participant="alice")
    wire.answer("TurnService.StartTurn", v1.StartTurnResponse(turn=turn(v1.TURN_STATE_RUNNING)))
    waits = v1.WaitTurnResponse(turn=turn(v1.TURN_STATE_INPUT_REQUIRED))
    wire.answer("TurnService.WaitTurn", waits)
    both = v1.ListInputRequestsResponse(input_requests=[pending("new"), pending("old")])
    wire.answer("InputService.ListInputRequests", both)
    first = wire.answer("InputService.RespondToInput", v1.RespondToInputResponse())
    assert (first.input_request_id, first.actor) == ("old", "alice")
    assert first.response.HasField("allow")
    # Somebody else was faster with the second: that is not this caller's failure.
    wire.fail("InputService.RespondToInput", grpc.StatusCode.FAILED_PRECONDITION, "INPUT_ALREADY_RESOLVED")
    # The server has not gone on yet: nothing is asked twice.
    wire.answer("TurnService.WaitTurn", waits)
    wire.answer("InputService.ListInputRequests", both)
    wire.answer("TurnService.WaitTurn", v1.WaitTurnResponse(turn=turn(v1.TURN_STATE_COMPLETED)))
    sent.result(5)
    assert asked == ["old", "new"]


def test_a_callback_that_answers_nothing_allows_nothing(wire: Wire) -> None:
    sent = wire.do(wire.session().send_sync, "hi", on_input=lambda request: None)
    wire.answer("TurnService.StartTurn", v1.StartTurnResponse(turn=turn(v1.TURN_STATE_RUNNING)))
    wire.answer("TurnService.WaitTurn", v1.WaitTurnResponse(turn=turn(v1.TURN_STATE_INPUT_REQUIRED)))
    wire.answer("InputService.ListInputRequests", v1.ListInputRequestsResponse(input_requests=[pending("a")]))
    assert isinstance(sent.exception(5), TypeError)


def test_without_a_callback_the_requests_are_handed_out(wire: Wire) -> None:
    sent = wire.do(wire.session().send_sync, "hi")
    wire.answer("TurnService.StartTurn", v1.StartTurnResponse(turn=turn(v1.TURN_STATE_RUNNING)))
    wire.answer("TurnService.WaitTurn", v1.WaitTurnResponse(turn=turn(v1.TURN_STATE_INPUT_REQUIRED)))
    wire.answer("InputService.ListInputRequests", v1.ListInputRequestsResponse(input_requests=[pending("a")]))
    error = sent.exception(5)
    assert isinstance(error, InputRequiredError)
    assert (error.turn_id, error.session_id) == ("t", "s")
    assert "May a?" in error.message
    answered = wire.do(error.inputs[0].deny, "no")
    request = wire.answer("InputService.RespondToInput", v1.RespondToInputResponse(input_request=pending("a")))
    assert request.response.deny.message == "no"
    assert answered.result(5).input_request_id == "a"


def test_an_answer_that_comes_too_late_is_said_to_who_gave_it(wire: Wire) -> None:
    answered = wire.do(wire.app.respond, "a", v1.InputResponse(allow=v1.Allow()))
    wire.fail("InputService.RespondToInput", grpc.StatusCode.FAILED_PRECONDITION, "INPUT_ALREADY_RESOLVED")
    assert isinstance(answered.exception(5), FailedPreconditionError)


def test_a_stream_goes_on_with_watch_turn(wire: Wire) -> None:
    got: queue.Queue[Event] = queue.Queue()

    def follow() -> None:
        for event in wire.session().stream("hi"):
            got.put(event)

    done = wire.do(follow)
    start, rpc = wire.take_stream("RunTurn")
    assert start.start.message.parts[0].text == "hi"
    rpc.terminate((), grpc.StatusCode.UNAVAILABLE, "before anything")
    again, rpc = wire.take_stream("RunTurn")
    assert again == start
    delta = v1.Event(sequence=4, turn_id="t", text=v1.TextDelta(text="a"))
    rpc.send_response(v1.RunTurnResponse(events=[delta], latest_sequence=4))
    assert got.get(timeout=5).sequence == 4
    rpc.terminate((), grpc.StatusCode.UNAVAILABLE, "cut")
    watch, rpc = wire.take_stream("WatchTurn")
    assert watch == v1.WatchTurnRequest(session_id="s", turn_id="t", after_sequence=4)
    last = v1.Event(sequence=5, turn_id="t", turn_finished=v1.TurnFinished(state=v1.TURN_STATE_COMPLETED))
    rpc.send_response(v1.WatchTurnResponse(events=[delta, last], latest_sequence=5))
    done.result(5)
    assert got.get(timeout=5).type == "turn_finished"
    assert got.empty()


def test_a_stream_that_is_left_is_cancelled(wire: Wire) -> None:
    stream = wire.session().stream("hi")
    first = wire.do(next, stream)
    _, rpc = wire.take_stream("RunTurn")
    delta = v1.Event(sequence=4, turn_id="t", text=v1.TextDelta(text="a"))
    rpc.send_response(v1.RunTurnResponse(events=[delta], latest_sequence=4))
    assert first.result(5).text == "a"
    stream.close()
    rpc.cancelled()
    assert list(stream) == []


def test_a_refused_stream_raises(wire: Wire) -> None:
    done = wire.do(lambda: list(wire.session().stream("hi")))
    _, rpc = wire.take_stream("RunTurn")
    rpc.terminate((), grpc.StatusCode.NOT_FOUND, "gone")
    assert isinstance(done.exception(5), NotFoundError)


def test_a_server_that_stays_away_is_given_up(wire: Wire) -> None:
    wire.app = Karta("127.0.0.1:1", channel=wire.channel, reconnect_timeout=0.0)
    done = wire.do(wire.app.session)
    wire.fail("SessionService.CreateSession", grpc.StatusCode.UNAVAILABLE)
    assert isinstance(done.exception(5), UnavailableError)


def test_lists_are_paged(wire: Wire) -> None:
    listed = wire.do(lambda: [session.id for session in wire.app.sessions({"a": "b"}, query="q")])
    page = v1.ListSessionsResponse(sessions=[v1.Session(session_id="1")], next_page_token="p")
    first = wire.answer("SessionService.ListSessions", page)
    assert (dict(first.metadata), first.query, first.page_token) == ({"a": "b"}, "q", "")
    second = wire.answer("SessionService.ListSessions", v1.ListSessionsResponse(sessions=[v1.Session(session_id="2")]))
    assert second.page_token == "p"
    assert listed.result(5) == ["1", "2"]
