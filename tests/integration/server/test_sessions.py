"""Sessions over gRPC."""

import asyncio

import grpc
import pytest
from google.protobuf import field_mask_pb2
from server_api import Api, Refused, kinds, script

from karta import v1

NOT_FOUND = grpc.StatusCode.NOT_FOUND
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNKNOWN_ID = "01900000-0000-7000-8000-000000000000"


async def update(api: Api, session: v1.Session, *paths: str, **fields: object) -> v1.Session:
    request = v1.UpdateSessionRequest(
        session=v1.Session(session_id=session.session_id, **fields),
        update_mask=field_mask_pb2.FieldMask(paths=paths),
    )
    return (await api.sessions.UpdateSession(request)).session


async def test_fifty_callers_at_once_get_one_session(api: Api) -> None:
    request = v1.CreateSessionRequest(metadata={"customer_id": "abc123"}, reuse=v1.SESSION_REUSE_LATEST)
    answers = await asyncio.gather(*(api.sessions.CreateSession(request) for _ in range(50)))
    assert len({answer.session.session_id for answer in answers}) == 1
    assert sum(not answer.reused for answer in answers) == 1


async def test_reuse_compares_the_whole_metadata_and_the_user(api: Api) -> None:
    reuse = v1.SESSION_REUSE_LATEST
    session = await api.create(metadata={"a": "1"}, reuse=reuse)
    assert (await api.create(metadata={"a": "1"}, reuse=reuse)).session_id == session.session_id
    for other in (
        await api.create(metadata={"a": "1", "b": "2"}, reuse=reuse),
        await api.create(metadata={}, reuse=reuse),
        await api.create(metadata={"a": "1"}, user_id="somebody", reuse=reuse),
        await api.create(metadata={"a": "1"}),
    ):
        assert other.session_id != session.session_id


async def test_reuse_leaves_archived_sessions_alone_and_takes_the_newest(api: Api) -> None:
    older = await api.create(metadata={"a": "1"})
    newer = await api.create(metadata={"a": "1"})
    await api.send(older, "now I am the newest")
    assert (await api.create(metadata={"a": "1"}, reuse=v1.SESSION_REUSE_LATEST)).session_id == older.session_id
    await update(api, older, "state", state=v1.SESSION_STATE_ARCHIVED)
    assert (await api.create(metadata={"a": "1"}, reuse=v1.SESSION_REUSE_LATEST)).session_id == newer.session_id
    with Refused(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_ARCHIVED"):
        await api.send(older, "still there?")


async def test_list_filters_pages_and_orders_by_activity(api: Api) -> None:
    made = [await api.create(metadata={"n": str(n), "kind": "x"}, title=f"Title {n}") for n in range(5)]
    await api.send(made[1], "activity")
    expected = [made[i].session_id for i in (1, 4, 3, 2, 0)]
    found: list[str] = []
    token = ""
    while True:
        request = v1.ListSessionsRequest(metadata={"kind": "x"}, page_size=2, page_token=token)
        page = await api.sessions.ListSessions(request)
        found += [session.session_id for session in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert found == expected
    by_text = await api.sessions.ListSessions(v1.ListSessionsRequest(query="tItLe 3"))
    assert [session.session_id for session in by_text.sessions] == [made[3].session_id]
    assert not (await api.sessions.ListSessions(v1.ListSessionsRequest(metadata={"kind": "y"}))).sessions


async def test_update_sets_what_the_mask_names_and_catches_concurrent_change(api: Api) -> None:
    session = await api.create(title="first", metadata={"a": "1"})
    changed = await update(api, session, "title", "metadata", title="second", metadata={"b": "2"}, etag=session.etag)
    assert (changed.title, dict(changed.metadata)) == ("second", {"b": "2"})
    with Refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH") as refused:
        await update(api, session, "title", title="third", etag=session.etag)
    assert refused.metadata["etag"] == changed.etag
    found = await api.create(metadata={"b": "2"}, reuse=v1.SESSION_REUSE_LATEST)
    assert found.session_id == session.session_id
    with Refused(INVALID, "FIELD_INVALID") as refused:
        await update(api, session, "harness", harness="other")
    assert refused.metadata["field"] == "update_mask"


async def test_a_deleted_session_is_gone_for_everyone(api: Api) -> None:
    session = await api.create(metadata={"a": "1"})
    turn = await api.start(session, script([{"text": "thinking", "pace": 0.05}, {"delay": 60}]))
    queued = await api.start(session, "later")
    watch = api.sessions.WatchSession(v1.WatchSessionRequest(session_id=session.session_id, follow=True))
    await watch.read()
    await api.sessions.DeleteSession(v1.DeleteSessionRequest(session_id=session.session_id))
    with Refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        while await watch.read() is not grpc.aio.EOF:
            pass
    with Refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        await api.sessions.GetSession(v1.GetSessionRequest(session_id=session.session_id))
    with Refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        await api.events(session)
    for gone in (turn, queued):
        with Refused(NOT_FOUND, "TURN_NOT_FOUND"):
            await api.get(gone)
    assert not (await api.sessions.ListSessions(v1.ListSessionsRequest())).sessions


async def test_handoff_changes_who_answers(api: Api, project: object) -> None:
    agents = project / ".scripted" / "agents"  # type: ignore[operator]
    agents.mkdir(parents=True)
    (agents / "billing.md").write_text("---\nname: billing\ndescription: Bills.\n---\nYou bill.")
    session = await api.create()
    assert (await api.send(session, "hello")).text == "echo[1]: hello"
    await update(api, session, "agent", agent="billing")
    assert (await api.send(session, "hello")).text == "billing: echo[2]: hello"
    handoff = next(e.agent_handoff for e in await api.events(session, kinds=["agent_handoff"]))
    assert (handoff.from_agent, handoff.to_agent) == ("", "billing")
    with Refused(NOT_FOUND, "AGENT_NOT_FOUND") as refused:
        await update(api, session, "agent", agent="bilding")
    assert refused.metadata == {"agent": "bilding", "known": "billing"}
    with Refused(NOT_FOUND, "AGENT_NOT_FOUND"):
        await api.send(session, "hello", agent="nobody")
    assert "message_received" not in kinds(await api.events(session, after_sequence=session.latest_sequence + 18))


async def test_participants_are_attributed_and_observers_only_read(api: Api) -> None:
    session = await api.create()

    async def add(**fields: object) -> v1.Session:
        participant = v1.Participant(**fields)
        request = v1.AddParticipantRequest(session_id=session.session_id, participant=participant)
        return (await api.sessions.AddParticipant(request)).session

    await add(participant_id="alice", display_name="Alice Chen")
    again = await add(participant_id="alice", display_name="Alice Chen")
    assert len(again.participants) == 1
    with Refused(grpc.StatusCode.ALREADY_EXISTS, "PARTICIPANT_EXISTS"):
        await add(participant_id="alice", display_name="Alice Cooper")
    await add(participant_id="bob", role=v1.PARTICIPANT_ROLE_OBSERVER)
    turn = await api.send(session, "the build fails", participant_id="alice")
    assert turn.text == "echo[1]: Alice Chen: the build fails"
    received = next(e for e in await api.events(session) if e.HasField("message_received"))
    assert (received.actor, received.message_received.display_name) == ("alice", "Alice Chen")
    with Refused(grpc.StatusCode.PERMISSION_DENIED, "PARTICIPANT_IS_OBSERVER"):
        await api.send(session, "me too", participant_id="bob")
    with Refused(NOT_FOUND, "PARTICIPANT_NOT_FOUND"):
        await api.send(session, "who am I?", participant_id="carol")
    mask = field_mask_pb2.FieldMask(paths=["role"])
    member = v1.Participant(participant_id="bob", role=v1.PARTICIPANT_ROLE_MEMBER)
    await api.sessions.UpdateParticipant(
        v1.UpdateParticipantRequest(session_id=session.session_id, participant=member, update_mask=mask)
    )
    assert (await api.send(session, "me too", participant_id="bob")).text == "echo[2]: bob: me too"
    removed = await api.sessions.RemoveParticipant(
        v1.RemoveParticipantRequest(session_id=session.session_id, participant_id="bob")
    )
    assert [p.participant_id for p in removed.session.participants] == ["alice"]


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"metadata": {"k" * 200: "v"}}, "FIELD_TOO_LARGE", "metadata key"),
        ({"metadata": {"k": "v" * 2000}}, "FIELD_TOO_LARGE", "metadata['k']"),
        ({"metadata": {str(n): "v" for n in range(40)}}, "FIELD_TOO_LARGE", "metadata"),
        ({"metadata": {"": "v"}}, "FIELD_INVALID", "metadata"),
        ({"title": "t" * 600}, "FIELD_TOO_LARGE", "title"),
        ({"title": "two\nlines"}, "FIELD_INVALID", "title"),
        ({"reuse": 99}, "FIELD_INVALID", "reuse"),
        ({"participants": [v1.Participant(participant_id="no spaces")]}, "FIELD_INVALID", "participants[0]"),
        ({"participants": [v1.Participant()]}, "FIELD_REQUIRED", "participants[0].participant_id"),
        ({"request_id": "r" * 200}, "FIELD_TOO_LARGE", "request_id"),
    ],
)
async def test_bad_fields_are_named_with_their_bound(
    api: Api, fields: dict[str, object], reason: str, field: str
) -> None:
    with Refused(INVALID, reason) as refused:
        await api.create(**fields)
    assert refused.metadata["field"].startswith(field)
    assert refused.metadata["field"] in refused.message
    if reason == "FIELD_TOO_LARGE":
        assert int(refused.metadata["actual"]) > int(refused.metadata["limit"])


async def test_unknown_things_are_not_found(api: Api) -> None:
    with Refused(NOT_FOUND, "SESSION_NOT_FOUND") as refused:
        await api.sessions.GetSession(v1.GetSessionRequest(session_id=UNKNOWN_ID))
    assert refused.metadata == {"session_id": UNKNOWN_ID}
    with Refused(NOT_FOUND, "TENANT_NOT_FOUND"):
        await api.create(tenant_id="another")
    with Refused(NOT_FOUND, "HARNESS_NOT_FOUND") as refused:
        await api.create(harness="emacs")
    assert "scripted" in refused.metadata["known"]
    with Refused(INVALID, "FIELD_REQUIRED"):
        await api.sessions.GetSession(v1.GetSessionRequest())
    with Refused(INVALID, "FIELD_INVALID") as refused:
        await api.sessions.ListSessions(v1.ListSessionsRequest(page_token="nonsense"))
    assert refused.metadata["field"] == "page_token"


async def test_the_same_request_id_makes_one_session(api: Api) -> None:
    first = await api.create(request_id="r1", title="one")
    assert await api.create(request_id="r1", title="one") == first
    with Refused(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        await api.create(request_id="r1", title="two")
    with Refused(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        await api.sessions.DeleteSession(v1.DeleteSessionRequest(request_id="r1", session_id=first.session_id))
