"""Configuration from file, environment and flags."""

import dataclasses
import os
import tempfile
from pathlib import Path

import pytest

from karta import v1
from karta_server.config import load
from karta_server.errors import KartaError
from karta_server.harness import registry
from karta_server.settings import BY_KEY, HARNESSES, SETTINGS, table


def refused(project: Path, environ: dict[str, str] | None = None, **flags: object) -> KartaError:
    with pytest.raises(KartaError) as caught:
        load(project, environ=environ or {}, **flags)
    return caught.value


def write(project: Path, text: str) -> Path:
    (project / "karta.jsonc").write_text(text)
    return project


def test_defaults(tmp_path):
    config = load(tmp_path, environ={})
    assert config.project == tmp_path
    assert config.state == config.sockets == tmp_path / ".karta"
    assert (config.listen, config.harness, config.agent, config.embedded) == ("127.0.0.1:7400", "", "", False)
    assert (config.heartbeat_seconds, config.drain_seconds) == (15, 20)
    assert (config.interrupt_seconds, config.idle_seconds) == (5, 600)
    assert (config.log_max_events, config.log_max_age_seconds) == (0, 0)
    assert config.limits == v1.Limits(
        max_message_bytes=256 * 1024,
        max_metadata_entries=32,
        max_metadata_key_bytes=128,
        max_metadata_value_bytes=1024,
        max_title_bytes=512,
        max_participants=64,
        max_queued_turns=100,
        max_running_turns=32,
        max_pending_inputs=32,
        max_open_streams=4096,
        max_page_size=500,
        max_tool_text_bytes=64 * 1024,
        max_request_bytes=4 * 1024 * 1024,
        max_response_bytes=256 * 1024,
        max_request_id_bytes=128,
        max_live_harnesses=32,
    )


def test_every_limit_of_the_contract_has_a_setting():
    contract = {f"limits.{field.name}" for field in v1.Limits.DESCRIPTOR.fields}
    assert contract == {key for key in BY_KEY if key.startswith("limits.")}


def test_file_environment_and_flags_in_that_order(tmp_path):
    write(tmp_path, '{"agent": "file", "heartbeat_seconds": 2, "limits": {"max_participants": 5}, /* c */}')
    assert load(tmp_path, environ={}).agent == "file"
    environ = {"KARTA_AGENT": "environment", "KARTA_LIMITS_MAX_PARTICIPANTS": "6"}
    config = load(tmp_path, environ=environ)
    assert (config.agent, config.limits.max_participants, config.heartbeat_seconds) == ("environment", 6, 2.0)
    assert load(tmp_path, environ=environ, agent="flag").agent == "flag"
    assert load(tmp_path, environ=environ, agent=None).agent == "environment"


def test_how_much_of_a_log_is_kept(tmp_path):
    write(tmp_path, '{"log": {"max_events": 1000, "max_age_seconds": 60}}')
    config = load(tmp_path, environ={"KARTA_LOG_MAX_EVENTS": "5"})
    assert (config.log_max_events, config.log_max_age_seconds) == (5, 60.0)
    assert "'max_age_seconds'" in refused(write(tmp_path, '{"log": {"max_age": 60}}')).message


def test_config_is_frozen(tmp_path):
    config = load(tmp_path, environ={})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.agent = "x"
    with pytest.raises(TypeError):
        config.harness_environment["X"] = "1"


def test_harness_sections(tmp_path):
    write(
        tmp_path,
        """{
        "idle_seconds": 5,
        "harness": {
            "name": "claude",
            "environment": ["MY_TOKEN"],
            "claude": {"idle_timeout_seconds": 90, "model": "haiku"},
            "scripted": {"pace": 1},
        },
    }""",
    )
    config = load(tmp_path, environ={"MY_TOKEN": "t", "OTHER": "o"})
    assert config.harness == "claude_code"
    assert config.idle_seconds == 90
    assert {name: dict(options) for name, options in config.harness_options.items()} == {
        "claude_code": {"model": "haiku"},
        "scripted": {"pace": 1},
    }
    assert dict(config.harness_environment) == {"MY_TOKEN": "t"}


def test_harness_environment_is_an_allow_list(tmp_path):
    allowed = [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LC_ALL",
        "TERM",
        "TZ",
        "TMPDIR",
        "XDG_CONFIG_HOME",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "NODE_EXTRA_CA_CERTS",
        "HTTP_PROXY",
        "https_proxy",
        "NO_PROXY",
        "ANTHROPIC_API_KEY",
        "CLAUDE_CONFIG_DIR",
        "CLAUDE_CODE_USE_BEDROCK",
        "AWS_REGION",
        "AWS_PROFILE",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_BEARER_TOKEN_BEDROCK",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "CLOUD_ML_REGION",
        "DISABLE_TELEMETRY",
        "IS_SANDBOX",
    ]
    refused = [
        "OPENAI_API_KEY",
        "GITHUB_TOKEN",
        "DATABASE_URL",
        "AWS_ENDPOINT_URL",
        "GOOGLE_API_KEY",
        "LD_PRELOAD",
        "PYTHONPATH",
        "CLAUDECODE",
        "PATHS",
        "MYPATH",
        "KARTA_TARGET",
        "VIRTUAL_ENV",
    ]
    config = load(tmp_path, environ=dict.fromkeys([*allowed, *refused], "x"))
    assert sorted(config.harness_environment) == sorted(allowed)


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ('{\n  "agent": "x",\n  "listn": "y"\n}', 3, 3, "unknown key 'listn': did you mean 'listen'?"),
        ('{"limits": {"max_participant": 1}}', 1, 13, "did you mean 'max_participants'?"),
        ('{"limits":\n {"max_participants": 0}}', 2, 3, "limits.max_participants is 0; allowed: 1 to 10,000"),
        ('{"limits": {"max_participants": true}}', 1, 13, "must be a whole number"),
        ('{"limits": {"max_participants": 1.5}}', 1, 13, "must be a whole number"),
        ('{"limits": 3}', 1, 2, "must be an object"),
        ('{"reflection": "yes"}', 1, 2, "must be true or false"),
        ('{"log_level": "loud"}', 1, 2, "allowed: debug, info, warning, error"),
        ('{"harness": {"enviroment": ["A"]}}', 1, 14, "did you mean 'environment'?"),
        ('{"harness": {"environment": "A"}}', 1, 14, "must be a list of names"),
        ('{"harness": {"claude": 3}}', 1, 14, "harness.claude must be an object"),
        ('{"harness": {"claude": {"idle_timeout_seconds": -1}}}', 1, 25, "harness.claude.idle_timeout_seconds is -1"),
        ('{"harness": {"claude": {}, "claude_code": {}}}', 1, 28, "two sections"),
        ('{\n "a" 1}', 2, 6, "is expected"),
        ("[]", 1, 1, "must hold an object"),
    ],
)
def test_mistakes_in_the_file_have_a_place(tmp_path, text, line, column, words):
    error = refused(write(tmp_path, text))
    assert error.reason == v1.ERROR_REASON_CONFIG_INVALID
    assert words in error.message
    assert error.metadata == {"file": str(tmp_path / "karta.jsonc"), "line": str(line), "column": str(column)}
    assert f"line {line}, column {column}" in error.message


def test_file_that_is_not_text(tmp_path):
    (tmp_path / "karta.jsonc").write_bytes(b'{\n "a": "\xff"}')
    error = refused(tmp_path)
    assert (error.metadata["line"], error.metadata["column"]) == ("2", "8")


def test_file_that_is_too_large(tmp_path):
    assert "it may have" in refused(write(tmp_path, " " * 1_048_577)).message


@pytest.mark.parametrize(
    ("environ", "flags", "setting"),
    [
        ({"KARTA_HEARTBEAT_SECONDS": "soon"}, {}, "heartbeat_seconds"),
        ({"KARTA_HEARTBEAT_SECONDS": "nan"}, {}, "heartbeat_seconds"),
        ({"KARTA_REFLECTION": "perhaps"}, {}, "reflection"),
        ({"KARTA_LIMITS_MAX_PARTICIPANT": "3"}, {}, "KARTA_LIMITS_MAX_PARTICIPANT"),
        ({"KARTA_LIMITS_MAX_MESSAGE_BYTES": "8000000"}, {}, "limits.max_message_bytes"),
        ({}, {"log_level": "loud"}, "log_level"),
        ({}, {"listen": "127.0.0.1"}, "listen"),
    ],
)
def test_mistakes_elsewhere_name_the_setting(tmp_path, environ, flags, setting):
    error = refused(tmp_path, environ, **flags)
    assert error.reason == v1.ERROR_REASON_CONFIG_INVALID
    assert error.metadata == {"setting": setting}


def test_other_variables_are_left_alone(tmp_path):
    assert load(tmp_path, environ={"KARTA_TARGET": "x", "KARTA_AGENT": ""}).agent == ""


def test_project_must_exist(tmp_path):
    assert refused(tmp_path / "no").metadata == {"setting": "project"}


def test_state_is_relative_to_where_it_is_said(tmp_path, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    write(project, '{"state": "mine"}')
    monkeypatch.chdir(tmp_path)
    assert load(project, environ={}).state == project / "mine"
    assert load(project, environ={"KARTA_STATE": "theirs"}).state == tmp_path / "theirs"
    assert load("project", environ={}, state="flag").state == tmp_path / "flag"


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("127.9.9.9:80", "127.9.9.9:80"),
        ("localhost:7400", "localhost:7400"),
        ("[::1]:7400", "[::1]:7400"),
        ("::1:7400", "[::1]:7400"),
        ("unix:/run/k.sock", "unix:/run/k.sock"),
        ("unix:///run/k.sock", "unix:/run/k.sock"),
    ],
)
def test_addresses_of_this_machine(tmp_path, listen, address):
    assert load(tmp_path, environ={}, listen=listen).listen == address


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:7400", "[::]:7400", "192.168.1.2:7400", "example.com:7400", ":7400", "*:1", "127.0.0.1.evil:1"]
)
def test_addresses_that_others_reach_are_refused(tmp_path, listen):
    error = refused(tmp_path, listen=listen)
    assert error.reason == v1.ERROR_REASON_ADDRESS_REFUSED
    assert error.metadata == {"address": listen}
    assert "127.0.0.1:PORT" in error.message


@pytest.mark.parametrize(
    "listen", ["", "7400", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:x", "unix:", "unix:/" + "x" * 107]
)
def test_what_is_no_address(tmp_path, listen):
    assert refused(tmp_path, listen=listen).metadata == {"setting": "listen"}


def test_embedded_server_is_private(tmp_path):
    write(tmp_path, '{"listen": "127.0.0.1:9"}')
    config = load(tmp_path, environ={"KARTA_LISTEN": "127.0.0.1:10"}, embedded=True)
    assert config.listen == f"unix:{config.sockets}/karta.sock"
    assert load(tmp_path, environ={}, embedded=True, listen="127.0.0.1:0").listen == "127.0.0.1:0"
    assert config.log_level == "warning"
    assert load(tmp_path, environ={}, embedded=True, log_level="debug").log_level == "debug"


def test_sockets_of_a_long_state_path_are_elsewhere(tmp_path):
    runtime = Path(tempfile.mkdtemp(prefix="run-", dir="/tmp"))
    state = tmp_path / ("long" * 30)
    try:
        config = load(tmp_path, environ={"XDG_RUNTIME_DIR": str(runtime)}, state=str(state), embedded=True)
        again = load(tmp_path, environ={"XDG_RUNTIME_DIR": str(runtime)}, state=str(state))
    finally:
        runtime.rmdir()
    assert config.sockets == again.sockets
    assert config.sockets.parent == runtime
    assert config.sockets.name.startswith(f"karta-{os.getuid()}-")
    assert len(config.listen) < 107


def test_table_explains_every_setting():
    text = table()
    for setting in SETTINGS:
        assert f"{setting.key} = " in text
        assert setting.variable in text
        assert setting.help.endswith(".")
        assert setting.check(setting.default) == setting.default


def test_harnesses_are_those_of_the_registry():
    assert tuple(registry.ADAPTERS) == HARNESSES


def test_unknown_flag_is_a_mistake_of_the_program(tmp_path):
    with pytest.raises(TypeError):
        load(tmp_path, environ={}, color=True)
