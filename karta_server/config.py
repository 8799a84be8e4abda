"""The configuration: karta.jsonc, environment and flags become one frozen Config.

Flags win over the environment, the environment over the file, the file over the
defaults. settings.py has the table. No other module reads os.environ.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from karta import v1
from karta_server import jsonc
from karta_server.addresses import listen_address, socket_folder
from karta_server.errors import KartaError
from karta_server.settings import (
    BY_KEY,
    BY_VARIABLE,
    ENVIRONMENT_KEY,
    HARNESS_ALIASES,
    HARNESSES,
    IDLE_OPTION,
    LIMITS,
    Setting,
    Value,
    nearest,
    reaches_harness,
)

FILE_NAME = "karta.jsonc"


@dataclass(frozen=True)
class Config:
    """Everything that a server can be told. `load` makes it; see settings.py for bounds and defaults."""

    project: Path
    """The folder that agents work in; absolute, exists."""
    state: Path
    """Where the server keeps what outlives it; absolute, may not exist yet."""
    sockets: Path
    """Folder for private Unix sockets; `state`, unless that is too long for a socket's path."""
    listen: str
    """"HOST:PORT" on loopback, or "unix:/absolute/path"."""
    harness: str
    """Harness of sessions that name none; empty means detection."""
    agent: str
    """Agent of sessions that name none; empty means the harness's own default."""
    embedded: bool
    """Whether the server ends with its last user."""
    limits: v1.Limits
    """Shared: not to be changed."""
    heartbeat_seconds: float
    drain_seconds: float
    interrupt_seconds: float
    """How long a cancelled turn may take before its harness is killed."""
    idle_seconds: float
    """How long a harness process is kept alive without a turn."""
    log_merge_above: int
    """How many events of a turn may wait to be written before its deltas are merged; 0 never merges."""
    log_max_events: int
    """How many events of a session's log are kept; 0 keeps all."""
    log_max_age_seconds: float
    """How long events are kept; 0 keeps them for ever."""
    harness_options: Mapping[str, Mapping[str, Any]]
    """`harness.<name>` of karta.jsonc by the harness's name; the adapter checks what is inside."""
    harness_environment: Mapping[str, str]
    """The whole environment of harness processes."""
    reflection: bool
    log_level: str
    """debug, info, warning or error."""


def load(project: str | Path = ".", environ: Mapping[str, str] | None = None, **flags: object) -> Config:
    """Return the configuration of a project.

    `flags` are named as Config's fields; None means not given. `environ` stands
    for os.environ in tests. Raises KartaError CONFIG_INVALID with file, line and
    column, or setting, and ADDRESS_REFUSED.
    """
    environ = os.environ if environ is None else environ
    folder = _project(project)
    file = _File(folder / FILE_NAME)
    values: dict[str, Value] = {key: setting.default for key, setting in BY_KEY.items()}
    embedded = bool(flags.get("embedded"))
    if embedded:
        # Its log is a file that nobody watches growing.
        values["log_level"] = "warning"
    if file.values.get("state"):
        values["state"] = str(folder / str(file.values.pop("state")))
    values |= file.values | _from_environment(environ) | _from_flags(flags)
    _check_sizes(values)
    state = Path(str(values["state"]) or folder / ".karta").absolute()
    sockets = socket_folder(state, [Path(environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())])
    # An embedded server is private: a port that others set is not for it.
    private = embedded and flags.get("listen") is None
    return Config(
        project=folder,
        state=state,
        sockets=sockets,
        listen=f"unix:{sockets / 'karta.sock'}" if private else listen_address(str(values["listen"])),
        harness=HARNESS_ALIASES.get(str(values["harness.name"]), str(values["harness.name"])),
        agent=str(values["agent"]),
        embedded=embedded,
        limits=v1.Limits(**{setting.key.partition(".")[2]: int(values[setting.key]) for setting in LIMITS}),
        heartbeat_seconds=float(values["heartbeat_seconds"]),
        drain_seconds=float(values["drain_seconds"]),
        interrupt_seconds=float(values["interrupt_seconds"]),
        idle_seconds=float(values["idle_seconds"]),
        log_merge_above=int(values["log.merge_above"]),
        log_max_events=int(values["log.max_events"]),
        log_max_age_seconds=float(values["log.max_age_seconds"]),
        harness_options=MappingProxyType(file.harness_options),
        harness_environment=MappingProxyType(_harness_environment(environ, file.environment_names)),
        reflection=bool(values["reflection"]),
        log_level=str(values["log_level"]),
    )


def _project(project: str | Path) -> Path:
    folder = Path(project).expanduser().absolute()
    if not folder.is_dir():
        _refuse("project", f"The project folder {folder} does not exist; name a folder that does.")
    return folder.resolve()


class _File:
    """What karta.jsonc says; nothing when there is none."""

    def __init__(self, path: Path) -> None:
        self.values: dict[str, Value] = {}
        self.harness_options: dict[str, Mapping[str, Any]] = {}
        self.environment_names: list[str] = []
        self._path = path
        self._document = self._read()
        self._idle_seconds: Value | None = None
        self._take(self._document.value, ())
        if self._idle_seconds is not None:
            self.values["idle_seconds"] = self._idle_seconds

    def _read(self) -> jsonc.Document:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return jsonc.Document({})
        except OSError as error:
            self._refuse(f"cannot be read: {error.strerror}", (1, 1))
        if len(data) > jsonc.MAX_BYTES:
            self._refuse(f"has {len(data)} bytes; it may have {jsonc.MAX_BYTES}", (1, 1))
        try:
            document = jsonc.parse(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            before = data[: error.start]
            column = error.start - (before.rfind(b"\n") + 1) + 1
            self._refuse("is not UTF-8", (before.count(b"\n") + 1, column))
        except jsonc.JsoncError as error:
            self._refuse(str(error), (error.line, error.column))
        if not isinstance(document.value, dict):
            self._refuse("must hold an object: { … }", (1, 1))
        return document

    def _take(self, members: dict[str, Any], path: tuple[str, ...]) -> None:
        for name, value in members.items():
            inner = (*path, name)
            key = ".".join(inner)
            if key in BY_KEY:
                self.values[key] = self._checked(BY_KEY[key], value, inner)
            elif key == ENVIRONMENT_KEY:
                self._take_environment(value, inner)
            elif path == ("harness",) and HARNESS_ALIASES.get(name, name) in HARNESSES:
                self._take_options(HARNESS_ALIASES.get(name, name), value, inner)
            elif any(known.startswith(f"{key}.") for known in BY_KEY):
                self._take(self._object(value, inner), inner)
            else:
                self._refuse(f"has an unknown key {key!r}: {nearest(name, _known(path))}", inner)

    def _checked(self, setting: Setting, value: object, path: tuple[str, ...]) -> Value:
        try:
            return setting.check(value)
        except ValueError as error:
            self._refuse(f"{'.'.join(path)} {error}", path)

    def _take_environment(self, value: object, path: tuple[str, ...]) -> None:
        if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
            self._refuse(f'{ENVIRONMENT_KEY} must be a list of names: ["NAME"]', path)
        self.environment_names = value

    def _take_options(self, harness: str, value: object, path: tuple[str, ...]) -> None:
        if harness in self.harness_options:
            self._refuse(f"has two sections for the harness {harness!r}", path)
        options = dict(self._object(value, path))
        if IDLE_OPTION in options:
            # Written at the harness, it wins over the general one.
            self._idle_seconds = self._checked(BY_KEY["idle_seconds"], options.pop(IDLE_OPTION), (*path, IDLE_OPTION))
        self.harness_options[harness] = MappingProxyType(options)

    def _object(self, value: object, path: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._refuse(f"{'.'.join(path)} must be an object: {{ … }}", path)
        return value

    def _refuse(self, why: str, at: tuple[str, ...] | tuple[int, int]) -> NoReturn:
        line, column = self._document.places[at] if isinstance(at[0], str) else at
        message = f"{self._path}, line {line}, column {column}: {why.rstrip('.')}."
        raise KartaError(v1.ERROR_REASON_CONFIG_INVALID, message, file=self._path, line=line, column=column)


def _known(path: tuple[str, ...]) -> set[str]:
    """Names that may stand inside of a section."""
    keys = [*BY_KEY, ENVIRONMENT_KEY, *(f"harness.{name}" for name in HARNESSES)]
    prefix = "".join(f"{name}." for name in path)
    return {key.removeprefix(prefix).partition(".")[0] for key in keys if key.startswith(prefix)}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, text in environ.items():
        setting = BY_VARIABLE.get(name)
        if setting and text:
            values[setting.key] = _parsed(setting, text, f"The environment variable {name}")
        elif setting is None and name.startswith("KARTA_LIMITS_"):
            # Other KARTA_ names may belong to the client, or to somebody else.
            _refuse(name, f"The environment variable {name} sets nothing: {nearest(name, BY_VARIABLE)}")
    return values


def _from_flags(flags: Mapping[str, object]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, value in flags.items():
        key = "harness.name" if name == "harness" else name
        if name == "embedded" or value is None:
            continue
        if key not in BY_KEY:
            raise TypeError(f"load() has no setting {name!r}")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        values[key] = _parsed(BY_KEY[key], text, f"--{name.replace('_', '-')}")
    return values


def _parsed(setting: Setting, text: str, source: str) -> Value:
    try:
        return setting.parse(text)
    except ValueError as error:
        _refuse(setting.key, f"{source} {error}.")


def _check_sizes(values: Mapping[str, Value]) -> None:
    whole = "limits.max_request_bytes"
    for part in ("limits.max_message_bytes", "limits.max_response_bytes"):
        # A message travels inside of a request, which has other fields too.
        if float(values[part]) + 1024 > float(values[whole]):
            message = f"{part} ({values[part]}) must be at least 1 KiB below {whole} ({values[whole]}): raise that too."
            _refuse(part, message)
    running, live = values["limits.max_running_turns"], values["limits.max_live_harnesses"]
    if float(running) > float(live):
        # A turn that runs without a process would not be running at all.
        message = f"limits.max_running_turns ({running}) must not exceed limits.max_live_harnesses ({live})."
        _refuse("limits.max_running_turns", message)


def _refuse(setting: str, message: str) -> NoReturn:
    raise KartaError(v1.ERROR_REASON_CONFIG_INVALID, message, setting=setting)


def _harness_environment(environ: Mapping[str, str], names: list[str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name in names or reaches_harness(name)}
