"""Defects of the runtime that Karta replaces, each seen there: they must not come back.

Against the real Claude Code; the offline model shows what reached it.
"""

import json
from pathlib import Path

from google.protobuf import field_mask_pb2
from server_api import Api, say, script

from karta import v1
from karta_client import AsyncKarta
from karta_server.testing.offline_model import OfflineModel


async def test_a_cancelled_turns_answer_is_not_the_next_turns(api: Api) -> None:
    """There, nothing interrupted or drained the harness: Alice's answer went to Bob."""
    session = await api.create()
    slow = script([{"text": "secret " * 100, "pace": 0.05}], [{"text": "the secret answer"}])
    turn = await api.start(session, slow)
    stream = api.sessions.WatchSession(v1.WatchSessionRequest(session_id=session.session_id, follow=True))
    while not any(event.HasField("text") for event in (await stream.read()).events):
        pass
    stream.cancel()
    assert (await api.cancel(turn)).state == v1.TURN_STATE_CANCELLED
    after = await api.send(session, script([{"text": "an answer of its own"}]))
    assert (after.state, after.text) == (v1.TURN_STATE_COMPLETED, "an answer of its own")
    events = await api.events(session)
    ended = next(event.sequence for event in events if event.HasField("turn_finished"))
    assert not [event for event in events if event.turn_id == turn.turn_id and event.sequence > ended]
    assert "secret" not in "".join(event.text.text for event in events if event.turn_id == after.turn_id)


async def test_a_decision_counts_although_the_asking_client_is_gone(api: Api, agents_project: Path) -> None:
    """There, the harness outlived the client's disconnect, ignored the decision, and asked again."""
    session = await api.create()
    counter = agents_project / "counter"
    command = {"command": f"echo once >> {counter}"}
    asks = script([{"tool": "Bash", "input": command}], [{"text": "done"}])
    stream = api.turns.RunTurn(v1.RunTurnRequest(start=say(session, asks)))
    while not any(event.HasField("input_required") for event in (await stream.read()).events):
        pass
    stream.cancel()
    (request,) = await api.pending(session)
    assert json.loads(request.tool_input)["command"] == command["command"]
    await api.respond(request, allow=v1.Allow())
    turn = await api.wait(v1.Turn(session_id=session.session_id, turn_id=request.turn_id))
    assert (turn.state, turn.text) == (v1.TURN_STATE_COMPLETED, "done")
    assert counter.read_text() == "once\n"
    asked = [event for event in await api.events(session) if event.HasField("input_required")]
    assert len(asked) == 1


async def test_what_was_documented_works(api: Api, claude: object, model: OfflineModel) -> None:
    """There: metadata lookup, agent by name, event.text, several agents in a folder, the list of sessions."""
    async with AsyncKarta(claude.address) as app:  # type: ignore[attr-defined]
        session = await app.session(metadata={"customer_id": "abc123"})
        await session.send("Order #12345")
        again = await app.session(metadata={"customer_id": "abc123"})
        assert again.id == session.id
        assert (await again.send("Any updates?")).text == "echo[2]: Any updates?"
        assert {"billing", "poet"} <= set(await app.list_agents())
        texts = [event.text async for event in app.stream("Hello", agent="billing") if event.type == "text"]
        assert "".join(texts) == "echo[1]: Hello"
        request = model.requests[-1]
        assert "You are the billing agent." in json.dumps(request["system"])
        tools = {tool["name"] for tool in request["tools"]}
        assert "Read" in tools
        assert "Bash" not in tools
        await app.send("Hello", agent="poet")
        assert "haiku" in model.requests[-1]["model"]
        listed = [found.id async for found in app.sessions()]
        assert len(listed) == 3
        assert session.id in listed


async def test_a_handoff_applies_the_new_agents_prompt(api: Api, model: OfflineModel) -> None:
    session = await api.create(agent="poet")
    await api.send(session, "Hello")
    assert "You are the poet." in json.dumps(model.requests[-1]["system"])
    await api.sessions.UpdateSession(
        v1.UpdateSessionRequest(
            session=v1.Session(session_id=session.session_id, agent="billing"),
            update_mask=field_mask_pb2.FieldMask(paths=["agent"]),
        )
    )
    turn = await api.send(session, "And now?")
    assert (turn.agent, turn.text) == ("billing", "echo[2]: And now?")
    system = json.dumps(model.requests[-1]["system"])
    assert "You are the billing agent." in system
    assert "You are the poet." not in system


async def test_the_participants_name_reaches_the_model(api: Api, model: OfflineModel) -> None:
    """There, nobody told the model who spoke."""
    session = await api.create(
        participants=[
            v1.Participant(participant_id="alice", display_name="Alice Chen"),
            v1.Participant(participant_id="bob", display_name="Bob Park"),
        ]
    )
    await api.send(session, "I need help with deployment", participant_id="alice")
    await api.send(session, "I can help, what is the error?", participant_id="bob")
    asked = json.dumps(model.requests[-1]["messages"])
    assert "Alice Chen: I need help with deployment" in asked
    assert "Bob Park: I can help, what is the error?" in asked
