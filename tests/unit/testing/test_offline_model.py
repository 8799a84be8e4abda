import asyncio
import http.client
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from karta_server.testing.offline_model import MAX_BODY_BYTES, OfflineModel, offline_environment

TOOLS = [{"name": "Bash"}]


@pytest.fixture
async def model(tmp_path: Path) -> AsyncIterator[OfflineModel]:
    async with OfflineModel(log=tmp_path / "requests.jsonl") as model:
        yield model


def user(*texts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def script(*calls: list[dict[str, Any]]) -> str:
    return f"SCRIPT:{json.dumps(calls)}END"


async def post(model: OfflineModel, *messages: dict[str, Any], path: str = "/v1/messages", **fields: Any) -> Any:
    body = {"model": "m", "messages": messages, "tools": TOOLS, **fields}
    return await asyncio.to_thread(_post, model.url + path, json.dumps(body).encode())


def _post(url: str, content: bytes) -> Any:
    request = urllib.request.Request(url, content, {"x-api-key": "secret"})
    with urllib.request.urlopen(request, timeout=10) as response:
        text = response.read().decode()
    if "event-stream" not in response.headers["content-type"]:
        return json.loads(text)
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


async def said(model: OfflineModel, *messages: dict[str, Any]) -> str:
    answer = await post(model, *messages)
    return "".join(block["text"] for block in answer["content"])


async def test_without_a_script_it_echoes_and_remembers(model: OfflineModel) -> None:
    assert await said(model, user("hi")) == "echo[1]: hi"
    assert await said(model, user("hi"), assistant("echo[1]: hi"), user("again")) == "echo[2]: again"


async def test_what_the_harness_writes_is_no_prompt(model: OfflineModel) -> None:
    surroundings = {"role": "system", "content": [{"type": "text", "text": "# Environment"}]}
    reminder = "<system-reminder>\nbe good\n</system-reminder>"

    assert await said(model, user(reminder, "hi"), surroundings) == "echo[1]: hi"
    assert await said(model, user("a", "[Request interrupted by user]", "b")) == "echo[2]: b"


async def test_each_call_gets_its_element_of_the_script(model: OfflineModel) -> None:
    prompt = user(script([{"tool": "Bash", "input": {"command": "ls"}}], [{"text": "done"}]))

    first = await post(model, prompt)
    assert first["stop_reason"] == "tool_use"
    (call,) = first["content"]
    assert (call["name"], call["input"]) == ("Bash", {"command": "ls"})

    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": "x"}]}
    conversation = [prompt, {"role": "assistant", "content": first["content"]}, result]
    assert await said(model, *conversation) == "done"
    assert await said(model, *conversation, assistant("done"), user("plain")) == "echo[2]: plain"


async def test_streams_real_deltas_with_usage(model: OfflineModel) -> None:
    text = "a text that is longer than one delta"
    blocks = [{"think": "hm"}, {"text": text}, {"tool": "Bash", "input": {"command": "sleep 1"}}]
    events = await post(model, user(script(blocks)), stream=True)

    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    pieces = [delta["text"] for delta in deltas if delta["type"] == "text_delta"]
    assert len(pieces) > 1
    assert "".join(pieces) == text
    assert "".join(d["thinking"] for d in deltas if d["type"] == "thinking_delta") == "hm"
    assert (
        json.loads("".join(d["partial_json"] for d in deltas if d["type"] == "input_json_delta")) == blocks[2]["input"]
    )
    assert [e["type"] for e in events if "block" not in e["type"]] == ["message_start", "message_delta", "message_stop"]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    again = await post(model, user(script(blocks)), stream=True)
    assert again[-2]["usage"] == events[-2]["usage"]
    assert events[-2]["usage"]["output_tokens"] == (2 + len(text) + len('{"command": "sleep 1"}')) // 4


async def test_an_error_happens_as_often_as_the_script_says(model: OfflineModel) -> None:
    prompt = user(script([{"error": 429, "retry_after": 1, "times": 2}, {"text": "at last"}]))
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError) as failed:
            await post(model, prompt)
        with failed.value as response:
            assert (response.code, response.headers["retry-after"]) == (429, "1")
            assert json.loads(response.read())["error"]["type"] == "rate_limit_error"
    assert await said(model, prompt) == "at last"


async def test_breaks_the_connection_where_the_script_says(model: OfflineModel) -> None:
    with pytest.raises((OSError, http.client.IncompleteRead)):
        await post(model, user(script([{"text": "partly"}, {"drop": True}])), stream=True)


async def test_ends_a_stream_with_an_error_event(model: OfflineModel) -> None:
    events = await post(model, user(script([{"text": "partly"}, {"sse_error": "overloaded_error"}])), stream=True)

    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "overloaded_error"


async def test_a_malformed_script_is_a_bad_request(model: OfflineModel) -> None:
    with pytest.raises(urllib.error.HTTPError) as failed:
        await post(model, user("SCRIPT:[[{]]END"))
    with failed.value as response:
        assert response.code == 400
        assert "not valid JSON" in response.read().decode()


async def test_refuses_a_body_beyond_its_limit(model: OfflineModel) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(model.url.rpartition(":")[2]))
    writer.write(f"POST /v1/messages HTTP/1.1\r\ncontent-length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode())
    assert b" 413 " in await reader.readline()
    writer.close()


async def test_side_calls_count_tokens_and_probes_are_answered(model: OfflineModel) -> None:
    title = await post(model, user("hi"), tools=[], system="make a title")
    assert title["content"][0]["text"] == "scripted title"
    assert (await post(model, user("hi"), path="/v1/messages/count_tokens"))["input_tokens"] > 0
    request = urllib.request.Request(model.url, method="HEAD")
    with await asyncio.to_thread(urllib.request.urlopen, request, None, 10) as response:
        assert response.status == 200


async def test_logs_requests_without_the_key(model: OfflineModel, tmp_path: Path) -> None:
    await post(model, user("hi"), system="be good")

    log = (tmp_path / "requests.jsonl").read_text()
    assert "secret" not in log
    (request,) = [json.loads(line) for line in log.splitlines()]
    assert request == model.requests[-1]
    assert (request["model"], request["system"], request["tools"]) == ("m", "be good", TOOLS)
    assert request["messages"] == [user("hi")]


def test_runs_as_a_program_and_stops_on_sigterm() -> None:
    command = [sys.executable, "-m", "karta_server.testing.offline_model"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        with urllib.request.urlopen(url, timeout=10) as response:
            assert response.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_the_environment_keeps_to_its_home(tmp_path: Path) -> None:
    environment = offline_environment(tmp_path / "home", "http://127.0.0.1:1")

    assert environment["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:1"
    for name in ("HOME", "CLAUDE_CONFIG_DIR", "TMPDIR"):
        assert Path(environment[name]).is_relative_to(tmp_path / "home")
