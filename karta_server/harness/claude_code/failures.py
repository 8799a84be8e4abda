"""What Claude Code's failures mean in the contract."""

from claude_agent_sdk import ResultMessage

from karta import v1
from karta_server.errors import KartaError

HARNESS = "claude_code"

_BY_STATUS = {
    401: v1.ERROR_REASON_MODEL_AUTHENTICATION_FAILED,
    403: v1.ERROR_REASON_MODEL_AUTHENTICATION_FAILED,
    429: v1.ERROR_REASON_MODEL_RATE_LIMITED,
}
_BY_KIND = {
    "authentication_failed": v1.ERROR_REASON_MODEL_AUTHENTICATION_FAILED,
    "oauth_org_not_allowed": v1.ERROR_REASON_MODEL_AUTHENTICATION_FAILED,
    "rate_limit": v1.ERROR_REASON_MODEL_RATE_LIMITED,
    "overloaded": v1.ERROR_REASON_MODEL_UNAVAILABLE,
    "server_error": v1.ERROR_REASON_MODEL_UNAVAILABLE,
}
_ADVICE = {
    v1.ERROR_REASON_MODEL_AUTHENTICATION_FAILED: "Check the API key, or log in with `claude` and /login.",
    v1.ERROR_REASON_MODEL_RATE_LIMITED: "Wait, then send the message again.",
    v1.ERROR_REASON_MODEL_UNAVAILABLE: "Check the connection to the model's provider, then send the message again.",
    v1.ERROR_REASON_PROMPT_TOO_LONG: "Begin a new session, or send /compact.",
}
_LIMITS = {
    "error_max_turns": "The turn reached the limit of model calls that is set for Claude Code (max turns).",
    "error_max_budget_usd": "The conversation reached the budget that is set for Claude Code (max budget).",
    "error_max_structured_output_retries": "The model did not answer in the wanted format often enough.",
}


def model_failure(kind: str, status: int | None, text: str) -> KartaError:
    """Return the failure of a model call by Claude Code's name for it and its HTTP status."""
    reason = _BY_STATUS.get(status or 0) or _BY_KIND.get(kind)
    if reason is None:
        # Without a status nobody answered at all: a connection that was refused, or broke.
        answered = status is not None and status < 500
        reason = v1.ERROR_REASON_HARNESS_FAILED if answered else v1.ERROR_REASON_MODEL_UNAVAILABLE
    return _failure(reason, text)


def turn_failure(result: ResultMessage, kind: str) -> KartaError:
    """Return why a turn failed; `kind` is the error that its last assistant message carried, or ""."""
    text = "; ".join(result.errors or []) or result.result or result.subtype
    if result.terminal_reason == "prompt_too_long":
        return _failure(v1.ERROR_REASON_PROMPT_TOO_LONG, text)
    if result.subtype in _LIMITS:
        return _failure(v1.ERROR_REASON_HARNESS_FAILED, f"{_LIMITS[result.subtype]} {text}")
    if result.api_error_status is not None or kind or result.terminal_reason == "api_error":
        return model_failure(kind, result.api_error_status, text)
    return _failure(v1.ERROR_REASON_HARNESS_FAILED, f"Claude Code failed: {text}")


def crashed(exit_code: int | None, stderr: str) -> KartaError:
    """Return that the process ended in the middle of a turn."""
    message = f"Claude Code ended in the middle of the turn (exit code {exit_code}). Send the message again to go on."
    if stderr:
        message = f"{message} Its last words: {stderr}"
    code = "unknown" if exit_code is None else exit_code
    return KartaError(v1.ERROR_REASON_HARNESS_CRASHED, message, harness=HARNESS, exit_code=code)


def start_failed(problem: str, stderr: str) -> KartaError:
    """Return that a process did not come to take a prompt."""
    message = f"Claude Code did not start: {problem}. `karta-runtime doctor` says what is wrong."
    if stderr:
        message = f"{message} Its last words: {stderr}"
    return KartaError(v1.ERROR_REASON_HARNESS_START_FAILED, message, harness=HARNESS)


def unknown_agent(agent: str, known: list[str]) -> KartaError:
    """Return that Claude Code has no such agent."""
    names = ", ".join(known)
    message = f"Claude Code knows no agent {agent!r}. It knows: {names}."
    return KartaError(v1.ERROR_REASON_AGENT_NOT_FOUND, message, agent=agent, known=",".join(known))


def _failure(reason: v1.ErrorReason.ValueType, text: str) -> KartaError:
    sentence = text if text.endswith((".", "!", "?")) else f"{text}."
    message = f"{sentence} {_ADVICE[reason]}" if reason in _ADVICE else sentence
    metadata = {"harness": HARNESS} if reason == v1.ERROR_REASON_HARNESS_FAILED else {}
    return KartaError(reason, message, **metadata)
