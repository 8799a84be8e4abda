"""What becomes of turns whose server was killed."""

import logging

from karta import v1
from karta_server.core import ledger
from karta_server.core.events import add_usage
from karta_server.core.session_log import FRAME_BYTES
from karta_server.error_codes import to_error
from karta_server.errors import KartaError
from karta_server.storage.contract import Claim, Store

log = logging.getLogger(__name__)


async def recover(store: Store) -> int:
    """End every turn that an earlier process left active as INTERRUPTED; return how many there were.

    Nothing is sent to a model again: what the log has is what happened, and a
    tool call without a result is recorded as of unknown outcome.
    """
    claims = await store.write(lambda tx: tx.turns.claims())
    for claim in claims:
        turn = await store.turns.get(claim.session, claim.turn_id)
        if turn is not None:
            await _end(store, claim, await _outcome(store, claim, turn))
    return len(claims)


async def _end(store: Store, claim: Claim, outcome: ledger.Outcome) -> None:
    await store.write(lambda tx: ledger.finish(tx, claim.session, claim.turn_id, None, outcome), claim.session)
    log.warning("turn %s was interrupted by the end of %s", claim.turn_id, claim.owner)


async def _outcome(store: Store, claim: Claim, turn: v1.Turn) -> ledger.Outcome:
    open_tools: dict[str, None] = {}
    text = ""
    usage = v1.Usage()
    position = turn.first_sequence - 1
    while frames := await store.events.read(claim.session, position, FRAME_BYTES):
        for event in v1.EventFrame.FromString(frames.data).events:
            if event.turn_id != turn.turn_id:
                continue
            if event.HasField("tool_use"):
                open_tools[event.tool_use.tool_use_id] = None
            elif event.HasField("tool_result"):
                open_tools.pop(event.tool_result.tool_use_id, None)
            elif event.HasField("step_finish"):
                add_usage(usage, event.step_finish.usage)
            elif event.HasField("message_completed"):
                text = event.message_completed.text
        position = frames.last
    reason = "The server was killed while the turn ran; send the message again to go on."
    error = to_error(KartaError(v1.ERROR_REASON_SERVER_KILLED, reason))
    finished = v1.TurnFinished(state=v1.TURN_STATE_INTERRUPTED, state_reason=reason, error=error, usage=usage)
    return ledger.Outcome(finished, text, None, tuple(open_tools))
