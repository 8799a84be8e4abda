"""Approvals and questions at the keyboard."""

import io

import pytest

from karta import v1
from karta_client.commands.asking import Lines, Prompt, ask, chosen
from karta_client.terminal import Renderer, make_console

ALL = [
    v1.INPUT_OPTION_ALLOW_ONCE,
    v1.INPUT_OPTION_ALLOW_SESSION,
    v1.INPUT_OPTION_ALLOW_UPDATED,
    v1.INPUT_OPTION_DENY,
]


class Typed(Lines):
    """Lines that a person types, and what was shown for them."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)
        self.prompts: list[tuple[str, str]] = []

    async def read(self, prompt: Prompt, *, default: str = "", record: bool = False) -> str:
        self.prompts.append((str(prompt), default))
        if not self.lines:
            raise EOFError
        return self.lines.pop(0) or default


async def answer(request: v1.InputRequest, *lines: str) -> tuple[v1.InputResponse, str, Typed]:
    shown, typed = io.StringIO(), Typed(*lines)
    response = await ask(request, typed, Renderer(make_console(shown)))
    return response, shown.getvalue(), typed


def permission(options: list[v1.InputOption] | None = None) -> v1.InputRequest:
    return v1.InputRequest(
        kind=v1.INPUT_KIND_TOOL_PERMISSION,
        title="Allow Bash?",
        tool_name="Bash",
        tool_input='{\n"command": "date"}',
        options=options or ALL,
    )


ONCE = v1.Allow(scope=v1.ALLOW_SCOPE_ONCE)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["y"], v1.InputResponse(allow=ONCE)),
        (["YES"], v1.InputResponse(allow=ONCE)),
        (["s"], v1.InputResponse(allow=v1.Allow(scope=v1.ALLOW_SCOPE_SESSION))),
        (["n", "not here"], v1.InputResponse(deny=v1.Deny(message="not here"))),
        (["n", ""], v1.InputResponse(deny=v1.Deny())),
        (["n use staging"], v1.InputResponse(deny=v1.Deny(message="use staging"))),
        (
            ["e", '{"command": "ls"}'],
            v1.InputResponse(allow=v1.Allow(scope=v1.ALLOW_SCOPE_ONCE, updated_input='{"command": "ls"}')),
        ),
        (["yes but not now", "y please", "n", ""], v1.InputResponse(deny=v1.Deny())),
        (["", "x", "y"], v1.InputResponse(allow=ONCE)),
        (["e", "[1]", "n", ""], v1.InputResponse(deny=v1.Deny())),
        (["e", "{", "y"], v1.InputResponse(allow=ONCE)),
    ],
)
async def test_permissions(lines: list[str], expected: v1.InputResponse) -> None:
    response, shown, typed = await answer(permission(), *lines)
    assert response == expected
    assert not typed.lines
    assert '"command": "date"' in shown


async def test_an_empty_line_allows_nothing() -> None:
    with pytest.raises(EOFError):
        await answer(permission(), "", "", "")


async def test_only_what_the_request_takes_can_be_chosen() -> None:
    response, shown, typed = await answer(permission([v1.INPUT_OPTION_ALLOW_ONCE, v1.INPUT_OPTION_DENY]), "s", "e", "y")
    assert response == v1.InputResponse(allow=ONCE)
    assert shown.count("Type one of: n y") == 2
    assert typed.prompts[0][0] == "Allow Bash? [y allow once, n deny] "


async def test_the_input_to_edit_is_in_one_line() -> None:
    _, _, typed = await answer(permission(), "e", "")
    assert typed.prompts[1][1] == '{"command": "date"}'


QUESTIONS = v1.InputRequest(
    kind=v1.INPUT_KIND_QUESTION,
    questions=[
        v1.Question(
            question="Which colour?",
            header="Colour",
            options=[v1.QuestionOption(label="red"), v1.QuestionOption(label="blue", description="like the sky")],
        ),
        v1.Question(
            question="Which days?",
            multi_select=True,
            options=[v1.QuestionOption(label="Monday"), v1.QuestionOption(label="Friday")],
        ),
        v1.Question(question="Your name?"),
    ],
)


async def test_questions_by_number_and_in_own_words() -> None:
    response, shown, _ = await answer(QUESTIONS, "7", "2", "1, 2", "", "Ada 1")
    answers = {key: list(value.labels) for key, value in response.answers.by_question.items()}
    assert answers == {"Which colour?": ["blue"], "Which days?": ["Monday", "Friday"], "Your name?": ["Ada 1"]}
    assert "Colour: Which colour?" in shown
    assert "  2 blue - like the sky" in shown


@pytest.mark.parametrize(
    ("typed", "labels"),
    [
        ("1", ["red"]),
        ("1 2", []),
        ("0", []),
        ("green", ["green"]),
        ("1 green", ["1 green"]),
        ("", []),
        ("2 2", ["blue"]),
    ],
)
def test_choosing_one(typed: str, labels: list[str]) -> None:
    assert chosen(QUESTIONS.questions[0], typed) == labels
