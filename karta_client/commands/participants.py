"""sessions participants: who takes part in a session."""

from typing import TYPE_CHECKING

import click

from karta import v1
from karta_client import calls
from karta_client.calls import Call
from karta_client.commands import output
from karta_client.commands.invocation import Group, Invocation, pass_invocation

if TYPE_CHECKING:
    from karta_client.connection import Connection

_KINDS = {"human": v1.PARTICIPANT_KIND_HUMAN, "agent": v1.PARTICIPANT_KIND_AGENT}
_ROLES = {
    "owner": v1.PARTICIPANT_ROLE_OWNER,
    "member": v1.PARTICIPANT_ROLE_MEMBER,
    "observer": v1.PARTICIPANT_ROLE_OBSERVER,
}


@click.group(
    cls=Group,
    epilog="""\
\b
Examples:
  kartactl sessions participants add SESSION alice --name "Alice Chen"
  kartactl sessions participants add SESSION auditor --role observer
  kartactl send "I agree" --session SESSION --participant alice
  kartactl sessions participants list SESSION""",
)
def participants() -> None:
    """Who takes part in a session: several people and agents can."""


@participants.command("list")
@click.argument("session")
@pass_invocation
def list_participants(invocation: Invocation, session: str) -> int:
    """List who takes part in SESSION, in the order in which they joined."""

    async def command(connection: "Connection") -> None:
        _show(invocation, (await connection.call(calls.get_session(session))).session)

    return invocation.run(command)


@participants.command("add")
@click.argument("session")
@click.argument("participant")
@click.option("--name", default="", help="What others, and the model, read.")
@click.option("--kind", type=click.Choice(list(_KINDS)), default="human", show_default=True)
@click.option("--role", type=click.Choice(list(_ROLES)), default="member", show_default=True)
@pass_invocation
def add(invocation: Invocation, session: str, participant: str, name: str, kind: str, role: str) -> int:
    """Let PARTICIPANT (an id of your choice) take part in SESSION."""
    joining = v1.Participant(participant_id=participant, display_name=name, kind=_KINDS[kind], role=_ROLES[role])

    async def command(connection: "Connection") -> None:
        _show(invocation, (await connection.call(calls.add_participant(session, joining))).session)

    return invocation.run(command)


@participants.command("remove")
@click.argument("session")
@click.argument("participant")
@pass_invocation
def remove(invocation: Invocation, session: str, participant: str) -> int:
    """Let PARTICIPANT leave SESSION. What was said stays."""
    request = v1.RemoveParticipantRequest(
        request_id=calls.new_request_id(), session_id=session, participant_id=participant
    )

    async def command(connection: "Connection") -> None:
        call = Call[v1.RemoveParticipantResponse]("sessions", "RemoveParticipant", request)
        _show(invocation, (await connection.call(call)).session)

    return invocation.run(command)


def _show(invocation: Invocation, session: v1.Session) -> None:
    header = ("PARTICIPANT", "NAME", "KIND", "ROLE", "JOINED")
    output.many(invocation.output, "participants", session.participants, header, _row)


def _row(participant: v1.Participant) -> tuple[str, ...]:
    return (
        participant.participant_id,
        participant.display_name,
        output.name_of(v1.ParticipantKind, participant.kind, "PARTICIPANT_KIND_"),
        output.name_of(v1.ParticipantRole, participant.role, "PARTICIPANT_ROLE_"),
        output.time_of(participant.join_time),
    )
