"""inputs: approvals and questions that wait for a person."""

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import click

from karta import v1
from karta_client import calls
from karta_client.calls import Call
from karta_client.commands import output
from karta_client.commands.asking import chosen, not_an_object
from karta_client.commands.invocation import Group, Invocation, pass_invocation
from karta_client.errors import UnavailableError
from karta_client.terminal import Renderer, make_console, shorten

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from karta_client.connection import Connection

_STATES = {
    "pending": v1.INPUT_STATE_PENDING,
    "answered": v1.INPUT_STATE_ANSWERED,
    "cancelled": v1.INPUT_STATE_CANCELLED,
}


@click.group(
    cls=Group,
    epilog="""\
\b
Examples:
  kartactl inputs list
  kartactl inputs get INPUT
  kartactl inputs respond INPUT --allow
  kartactl inputs respond INPUT --allow --input '{"command": "ls"}'
  kartactl inputs respond INPUT --deny "Use the staging database"
  kartactl inputs respond INPUT --answer 'Which colour?=blue'
  kartactl inputs watch -o jsonl""",
)
def inputs() -> None:
    """Input requests: approvals and questions that wait for a person."""


@inputs.command("list")
@click.option("--session", default="", metavar="ID", help="Only this session's.")
@click.option("--state", "states", multiple=True, type=click.Choice(list(_STATES)), help="Default: pending.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at the most.")
@pass_invocation
def list_inputs(invocation: Invocation, /, session: str, states: tuple[str, ...], limit: int) -> int:
    """List input requests, newest first."""
    request = v1.ListInputRequestsRequest(session_id=session, states=[_STATES[state] for state in states])

    async def command(connection: "Connection") -> None:
        found: list[v1.InputRequest] = []
        while len(found) < limit:
            request.page_size = min(limit - len(found), 50)
            page = await connection.call(Call[v1.ListInputRequestsResponse]("inputs", "ListInputRequests", request))
            found += page.input_requests
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        header = ("INPUT", "STATE", "TOOL", "ASKED", "TITLE")
        output.many(invocation.output, "input_requests", found, header, _row)

    return invocation.run(command)


@inputs.command("get")
@click.argument("input_request", metavar="INPUT")
@pass_invocation
def get(invocation: Invocation, /, input_request: str) -> int:
    """Show the input request INPUT, a tool's input to the letter."""

    async def command(connection: "Connection") -> None:
        _show(invocation, await _get(connection, input_request))

    return invocation.run(command)


@inputs.command("watch")
@click.option("--session", default="", metavar="ID", help="Only this session's.")
@pass_invocation
def watch(invocation: Invocation, /, session: str) -> int:
    """Print what waits, and then each input request that is made or resolved."""
    request = v1.WatchInputRequestsRequest(session_id=session)

    async def command(connection: "Connection") -> None:
        backoff = connection.backoff()
        while True:
            call: Call[Any] = Call("inputs", "WatchInputRequests", request, None)
            frames = cast("AsyncGenerator[Any, None]", connection.frames(call))
            failure = UnavailableError("The server ended the stream.", code="UNAVAILABLE")
            try:
                async with aclosing(frames):
                    async for frame in frames:
                        backoff.reset()
                        for input_request in frame.input_requests:
                            _show(invocation, input_request)
            except UnavailableError as error:
                failure = error
            # A new stream begins with all that waits, so nothing is missed.
            await asyncio.sleep(backoff.next(failure))

    return invocation.run(command)


@inputs.command("respond")
@click.argument("input_request", metavar="INPUT")
@click.option("--allow", is_flag=True, help="Let the tool run.")
@click.option("--session-scope", is_flag=True, help="With --allow: for further calls of the tool in this session.")
@click.option("--input", "updated_input", metavar="JSON", help="With --allow: what the tool gets instead.")
@click.option("--deny", is_flag=False, flag_value="", metavar="[MESSAGE]", help="Refuse; the agent reads the message.")
@click.option("--interrupt", is_flag=True, help="With --deny: end the turn.")
@click.option(
    "--answer",
    "answers",
    multiple=True,
    metavar="QUESTION=LABEL",
    help="Answer a question, named by its text or its number; repeatable.",
)
@click.option("--participant", default="", metavar="ID", help="Who answers: a participant of the session.")
@pass_invocation
def respond(invocation: Invocation, /, input_request: str, participant: str, **given: Any) -> int:
    """Answer the input request INPUT. The first answer wins."""
    _check(**given)

    async def command(connection: "Connection") -> None:
        if given["answers"]:
            response = answered(await _get(connection, input_request), given["answers"])
        else:
            response = _decision(**given)
        call = calls.respond(input_request, response, participant)
        _show(invocation, (await connection.call(call)).input_request)

    return invocation.run(command)


def _check(
    *,
    allow: bool,
    session_scope: bool,
    updated_input: str | None,
    deny: str | None,
    interrupt: bool,
    answers: tuple[str, ...],
) -> None:
    if allow + (deny is not None) + bool(answers) != 1:
        raise click.UsageError("say one of --allow, --deny and --answer")
    if (session_scope or updated_input is not None) and not allow:
        raise click.UsageError("--session-scope and --input go with --allow")
    if interrupt and deny is None:
        raise click.UsageError("--interrupt goes with --deny")
    if updated_input is not None and (problem := not_an_object(updated_input)):
        raise click.UsageError(f"--input must be a JSON object: {problem}")


def _decision(
    *, session_scope: bool, updated_input: str | None, deny: str | None, interrupt: bool, **_: Any
) -> v1.InputResponse:
    if deny is not None:
        return v1.InputResponse(deny=v1.Deny(message=deny, interrupt=interrupt))
    scope = v1.ALLOW_SCOPE_SESSION if session_scope else v1.ALLOW_SCOPE_ONCE
    return v1.InputResponse(allow=v1.Allow(scope=scope, updated_input=updated_input))


def answered(request: v1.InputRequest, answers: tuple[str, ...]) -> v1.InputResponse:
    """Return the response that "question=label" arguments mean; a question is named by its text, header or number."""
    response = v1.InputResponse(answers=v1.Answers())
    for answer in answers:
        question, label = _named(request, answer)
        labels = chosen(question, label)
        if not labels:
            raise click.UsageError(f"{answer!r} chooses nothing")
        response.answers.by_question[question.question].labels.extend(labels)
    for question in request.questions:
        if question.question not in response.answers.by_question:
            raise click.UsageError(f"no answer to {question.question!r}; give another --answer")
    return response


def _named(request: v1.InputRequest, answer: str) -> tuple[v1.Question, str]:
    for number, question in enumerate(request.questions, 1):
        for name in (question.question, question.header, str(number)):
            if name and answer.startswith(f"{name}="):
                return question, answer[len(name) + 1 :]
    if len(request.questions) == 1:
        return request.questions[0], answer
    known = "; ".join(f"{number} {question.question}" for number, question in enumerate(request.questions, 1))
    raise click.UsageError(f"{answer!r} names no question of this request: {known or 'it asks none'}")


async def _get(connection: "Connection", input_request_id: str) -> v1.InputRequest:
    request = v1.GetInputRequestRequest(input_request_id=input_request_id)
    call = Call[v1.GetInputRequestResponse]("inputs", "GetInputRequest", request)
    return (await connection.call(call)).input_request


def _show(invocation: Invocation, /, request: v1.InputRequest) -> None:
    if invocation.output != "text":
        output.one(invocation.output, request, lambda: "")
        return
    output.line(f"{request.input_request_id}  {_state(request)}  session {request.session_id}")
    Renderer(make_console()).request(request)


def _state(request: v1.InputRequest) -> str:
    return output.name_of(v1.InputState, request.state, "INPUT_STATE_")


def _row(request: v1.InputRequest) -> tuple[str, ...]:
    asked = output.time_of(request.create_time)
    return (request.input_request_id, _state(request), request.tool_name, asked, shorten(request.title, 80))
