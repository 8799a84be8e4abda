"""The command line without a server: parsing, help, exit codes, and what importing it costs."""

import json
import subprocess
import sys
from collections.abc import Mapping

import click
import pytest
from click.testing import CliRunner, Result

from karta import v1
from karta_client.cli import cli
from karta_client.commands import exits, output
from karta_client.commands.inputs import answered
from karta_client.commands.invocation import Invocation
from karta_client.errors import EmbeddedServerError, KartaError


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


def test_the_version_needs_no_grpc() -> None:
    program = (
        "import sys; from karta_client.cli import main; sys.argv[1:] = ['--version']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'grpc', 'google.protobuf', 'rich', 'prompt_toolkit', 'asyncio'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("kartactl, version ")


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [path]
    context = click.Context(command)
    found = [path]
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child
        found += _commands(child, (*path, name))
    return found


@pytest.mark.parametrize("path", _commands(cli), ids=lambda path: " ".join(path) or "kartactl")
def test_help(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: {' '.join(('kartactl', *path))} ")


@pytest.mark.parametrize("group", ["sessions", "turns", "inputs", "agents", "harnesses", "server"])
def test_the_help_of_a_group_has_examples(group: str) -> None:
    assert f"  kartactl {group}" in run(group, "--help").output


def test_the_help_says_what_exit_codes_mean() -> None:
    text = run("--help").output
    for name in ("OK", "TURN_FAILED", "USAGE", "NEEDS_INPUT", "NOT_FOUND", "REFUSED", "UNAVAILABLE", "INTERNAL"):
        assert f"\n    {getattr(exits, name):<3}" in text


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["send"],
        ["send", "hi", "--approve", "always"],
        ["send", "hi", "--metadata", "novalue"],
        ["sessions", "watch", "s", "--after", "-1"],
        ["sessions", "watch", "s", "--kind", "nonsense"],
        ["sessions", "update", "s"],
        ["sessions", "delete", "s"],
        ["inputs", "respond", "i"],
        ["inputs", "respond", "i", "--allow", "--deny"],
        ["inputs", "respond", "i", "--deny", "--session-scope"],
        ["inputs", "respond", "i", "--allow", "--interrupt"],
        ["inputs", "respond", "i", "--allow", "--input", "[]"],
        ["inputs", "respond", "i", "--allow", "--input", "{"],
        ["--output", "yaml", "server", "info"],
    ],
    ids=" ".join,
)
def test_wrong_usage(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == exits.USAGE
    assert "Error: " in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("args", [["sessions", "update", "s"], ["chat"], ["inputs", "respond", "i"]], ids=" ".join)
def test_wrong_usage_as_json(args: list[str]) -> None:
    result = run(*args, "-o", "json")
    assert result.exit_code == exits.USAGE
    assert json.loads(result.stderr)["error"]["reason"] == "USAGE"


@pytest.mark.parametrize(
    ("args", "environment", "target", "format_"),
    [
        (["server", "info"], {}, None, "text"),
        (["--target", "a:1", "server", "info"], {}, "a:1", "text"),
        (["server", "info", "--target", "a:1", "-o", "json"], {}, "a:1", "json"),
        (["--target", "a:1", "server", "info", "--target", "b:2"], {}, "b:2", "text"),
        (["server", "info"], {"KARTA_TARGET": "e:1"}, "e:1", "text"),
        (["--target", "a:1", "server", "info"], {"KARTA_TARGET": "e:1"}, "a:1", "text"),
        (["server", "info", "--target", "a:1"], {"KARTA_TARGET": "e:1"}, "a:1", "text"),
        (["-o", "jsonl", "server", "info"], {}, None, "jsonl"),
    ],
)
def test_global_options_count_before_and_after_the_command(
    args: list[str],
    environment: Mapping[str, str],
    target: str | None,
    format_: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Invocation] = []

    def record(invocation: Invocation, command: object) -> int:
        seen.append(invocation)
        return 0

    monkeypatch.setattr(Invocation, "run", record)
    result = CliRunner().invoke(cli, args, env=environment)
    assert result.exit_code == 0, result.output
    assert (seen[0].target, seen[0].output) == (target, format_)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KartaError("m", reason="SESSION_NOT_FOUND", code="NOT_FOUND"), exits.NOT_FOUND),
        (KartaError("m", reason="FIELD_INVALID", code="INVALID_ARGUMENT"), exits.REFUSED),
        (KartaError("m", reason="SESSION_BUSY", code="FAILED_PRECONDITION"), exits.REFUSED),
        (KartaError("m", reason="ETAG_MISMATCH", code="ABORTED"), exits.REFUSED),
        (KartaError("m", reason="PARTICIPANT_IS_OBSERVER", code="PERMISSION_DENIED"), exits.REFUSED),
        (KartaError("m", reason="QUEUE_FULL", code="RESOURCE_EXHAUSTED"), exits.REFUSED),
        (KartaError("m", code="UNAVAILABLE"), exits.UNAVAILABLE),
        (KartaError("m", reason="WAIT_TIMEOUT", code="DEADLINE_EXCEEDED"), exits.UNAVAILABLE),
        (EmbeddedServerError("m", log="l"), exits.UNAVAILABLE),
        (KartaError("m", reason="INTERNAL", code="INTERNAL"), exits.INTERNAL),
        (KartaError("m", code="UNKNOWN"), exits.INTERNAL),
        (ValueError("m"), exits.INTERNAL),
    ],
)
@pytest.mark.parametrize("format_", ["text", "json"])
def test_errors_become_exit_codes_and_one_line(
    error: Exception, code: int, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(Invocation, "run", fail)
    result = run("server", "info", "-o", format_)
    assert result.exit_code == code
    assert not result.stdout
    if format_ == "json":
        assert json.loads(result.stderr)["error"]["message"].find("m") >= 0
    else:
        assert result.stderr.startswith("kartactl: ")
        assert result.stderr.count("\n") == (2 if isinstance(error, EmbeddedServerError) else 1)


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Invocation, "run", interrupt)
    assert run("server", "info").exit_code == exits.INTERRUPTED


def test_json_has_the_fields_names_and_nothing_a_terminal_obeys() -> None:
    event = v1.Event(sequence=1 << 60, session_id="s", text=v1.TextDelta(text="a\x9b\u202eé\n"))
    text = output.to_json(event)
    assert text == '{"sequence":"1152921504606846976","session_id":"s","text":{"text":"a\\u009b\\u202eé\\n"}}'
    assert json.loads(text)["text"]["text"] == "a\x9b\u202eé\n"


def test_tables_keep_their_columns_and_hold_no_control_characters() -> None:
    assert output.table(("A", "B"), [["x\x1b[2J\ny", "1"], ["", "2"]]) == "A    B\nx y  1\n     2"


REQUEST = v1.InputRequest(
    questions=[
        v1.Question(
            question="a=b?", header="H", options=[v1.QuestionOption(label="yes"), v1.QuestionOption(label="no")]
        ),
        v1.Question(question="Days?", multi_select=True, options=[v1.QuestionOption(label="Mon")]),
    ]
)


@pytest.mark.parametrize("answers", [("a=b?=yes", "Days?=1"), ("H=1", "2=Mon"), ("1=yes", "Days?=Mon")])
def test_answers_name_their_question(answers: tuple[str, ...]) -> None:
    response = answered(REQUEST, answers)
    assert {k: list(v.labels) for k, v in response.answers.by_question.items()} == {"a=b?": ["yes"], "Days?": ["Mon"]}


@pytest.mark.parametrize("answers", [("H=1",), ("nobody=1", "Days?=1"), ("H=9", "2=Mon")])
def test_answers_that_are_wrong(answers: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        answered(REQUEST, answers)


def test_a_single_question_need_not_be_named() -> None:
    request = v1.InputRequest(questions=REQUEST.questions[:1])
    assert list(answered(request, ("no",)).answers.by_question["a=b?"].labels) == ["no"]
