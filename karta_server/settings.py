"""Every setting of the server: its key, type, bounds, default and meaning. config.py reads them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

HARNESS_ALIASES = {"claude": "claude_code"}
"""Names that karta.jsonc may use for a harness's section."""
HARNESSES = ("claude_code", "scripted")
"""Harnesses that have a section in karta.jsonc: `harness.<name>`."""

Value = str | int | float | bool


@dataclass(frozen=True)
class Setting:
    """One setting. Its default's type is its type."""

    key: str
    """Path in karta.jsonc, with dots."""
    default: Value
    help: str
    minimum: float = 0
    maximum: float = 0
    unit: str = ""
    choices: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        name = self.key.removesuffix(".name").replace(".", "_")
        return f"KARTA_{name.upper()}"

    @property
    def bounds(self) -> str:
        """What values it may have, for people."""
        if self.choices:
            return ", ".join(self.choices)
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, str):
            return "text"
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.minimum:,.15g} to {self.maximum:,.15g}{unit}"

    def check(self, value: object) -> Value:
        """Return the value in the setting's type. Raises ValueError that says what is allowed."""
        kind = type(self.default)
        # JSON has one kind of number, and True is an int to Python.
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, str | int | float) or type(value) is not kind:
            raise ValueError(f"must be {_WORDS[kind]}; allowed: {self.bounds}")
        if isinstance(value, str):
            self._check_text(value)
        elif not isinstance(value, bool) and not self.minimum <= value <= self.maximum:
            raise ValueError(f"is {value:g}; allowed: {self.bounds}")
        return value

    def parse(self, text: str) -> Value:
        """Return the value that a text of the environment or a flag means. Raises ValueError."""
        kind = type(self.default)
        if kind is bool:
            return self.check(_BOOLEANS.get(text.strip().lower(), text))
        if kind is str:
            return self.check(text)
        try:
            return self.check(kind(text))
        except (ValueError, OverflowError):
            raise ValueError(f"is {text[:40]!r}; allowed: {self.bounds}") from None

    def _check_text(self, value: str) -> None:
        if self.choices and value not in self.choices:
            raise ValueError(f"is {value[:40]!r}; allowed: {self.bounds}")
        if "\0" in value or len(value) > 4096:
            raise ValueError("is too long, or holds a NUL")


_WORDS: dict[type, str] = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}
_BOOLEANS = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)

_KIB = 1024
_MIB = 1024 * 1024

LIMITS = (
    Setting("limits.max_message_bytes", 256 * _KIB, "A message to an agent, all its parts.", 1, 16 * _MIB, "bytes"),
    Setting("limits.max_metadata_entries", 32, "Entries in a session's metadata.", 1, 1024),
    Setting("limits.max_metadata_key_bytes", 128, "A key of the metadata.", 1, 1024, "bytes"),
    Setting("limits.max_metadata_value_bytes", 1 * _KIB, "A value of the metadata.", 1, 64 * _KIB, "bytes"),
    Setting("limits.max_title_bytes", 512, "A session's title.", 1, 64 * _KIB, "bytes"),
    Setting("limits.max_participants", 64, "Participants of a session.", 1, 10_000),
    Setting("limits.max_queued_turns", 100, "Turns that wait in a session.", 1, 10_000),
    Setting("limits.max_running_turns", 32, "Turns that run at once on this server; more wait.", 1, 10_000),
    Setting("limits.max_pending_inputs", 32, "Input requests that wait in a session.", 1, 10_000),
    Setting("limits.max_open_streams", 4096, "Open streams of this server.", 1, 1_000_000),
    Setting("limits.max_page_size", 500, "Items of a page in a list.", 1, 10_000),
    Setting("limits.max_tool_text_bytes", 64 * _KIB, "A tool's input or output in an event.", 64, 2 * _MIB, "bytes"),
    Setting("limits.max_request_bytes", 4 * _MIB, "A request to the server.", 4 * _KIB, 64 * _MIB, "bytes"),
    Setting("limits.max_response_bytes", 256 * _KIB, "An answer to an input request.", 1, 16 * _MIB, "bytes"),
    Setting("limits.max_request_id_bytes", 128, "A request_id.", 16, 1024, "bytes"),
    Setting("limits.max_live_harnesses", 32, "Harness processes that are kept alive at once.", 1, 1000),
)

SETTINGS = (
    Setting("state", "", "Folder of the server's state; empty means .karta in the project folder."),
    Setting("listen", "127.0.0.1:7400", "Where to serve: loopback HOST:PORT (port 0: any free one), or unix:/path."),
    Setting("harness.name", "", "Harness of sessions that name none; empty means to find out from the project."),
    Setting("agent", "", "Agent of sessions that name none; empty means the harness's own default."),
    Setting("heartbeat_seconds", 15.0, "How often an idle stream gets a heartbeat.", 1, 3600, "s"),
    Setting("drain_seconds", 20.0, "How long running turns may take to end when the server stops.", 0, 3600, "s"),
    Setting("interrupt_seconds", 5.0, "How long a cancelled turn may take until its harness is killed.", 0.1, 300, "s"),
    Setting("idle_seconds", 600.0, "How long a harness process is kept alive without a turn.", 0, 86_400, "s"),
    Setting(
        "log.merge_above",
        128,
        "Deltas of one part are merged when more events of a turn than this wait to be written; 0 never merges.",
        0,
        256,
    ),
    Setting("log.max_events", 0, "Events that are kept of a session's log at least; 0 keeps all.", 0, 10**12),
    Setting("log.max_age_seconds", 0.0, "How long events are kept at least; 0 keeps them for ever.", 0, 10**10, "s"),
    Setting("reflection", True, "Whether clients can ask for the contract by gRPC reflection."),
    Setting("log_level", "info", "Least severe lines of the log.", choices=("debug", "info", "warning", "error")),
    *LIMITS,
)
BY_KEY = {setting.key: setting for setting in SETTINGS}
BY_VARIABLE = {setting.variable: setting for setting in SETTINGS}

ENVIRONMENT_KEY = "harness.environment"
IDLE_OPTION = "idle_timeout_seconds"

# What a harness's process may have of the server's environment. AWS_ and
# GOOGLE_ only as far as Claude Code's login to Bedrock and Vertex needs them.
_ALLOWED = re.compile(
    r"""PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_\w+|TERM|TZ|TMPDIR|XDG_\w+
    |SSL_CERT_FILE|SSL_CERT_DIR|NODE_EXTRA_CA_CERTS
    |HTTP_PROXY|HTTPS_PROXY|NO_PROXY|http_proxy|https_proxy|no_proxy
    |ANTHROPIC_\w+|CLAUDE_\w+|DISABLE_\w+|IS_SANDBOX
    |AWS_(?:ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|BEARER_TOKEN_BEDROCK|REGION|DEFAULT_REGION|PROFILE
        |CONFIG_FILE|SHARED_CREDENTIALS_FILE|CA_BUNDLE|ROLE_ARN|ROLE_SESSION_NAME|WEB_IDENTITY_TOKEN_FILE
        |CONTAINER_CREDENTIALS_\w+|CONTAINER_AUTHORIZATION_\w+)
    |GOOGLE_(?:APPLICATION_CREDENTIALS|CLOUD_PROJECT)|GCLOUD_PROJECT|CLOUD_ML_REGION|VERTEX_REGION_\w+""",
    re.VERBOSE | re.ASCII,
)


def reaches_harness(name: str) -> bool:
    """Whether a variable of the environment reaches the harness's processes without being named."""
    return _ALLOWED.fullmatch(name) is not None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that was probably meant, or at all of them."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}."


def table() -> str:
    """Return all settings as text: key, default, bounds, variable, meaning."""
    blocks = [
        f"{setting.key} = {_shown(setting.default)}\n    {setting.help}\n    {setting.bounds}; {setting.variable}"
        for setting in SETTINGS
    ]
    blocks.append(f"{ENVIRONMENT_KEY} = []\n    More variables of the environment that reach the harness, by name.")
    blocks.append(
        f"harness.<name> = {{}}\n    Options of one harness: {', '.join(HARNESSES)}; {IDLE_OPTION} is known to all."
    )
    return "\n".join(blocks)


def _shown(default: Value) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return f'"{default}"' if isinstance(default, str) else f"{default:.15g}"
