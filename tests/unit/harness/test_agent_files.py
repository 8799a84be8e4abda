import json
import logging
from pathlib import Path

import pytest

from karta_server.harness import agent_files
from karta_server.harness.agent_files import read_agent_files


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_reads_folders_within_folders_in_order(tmp_path: Path) -> None:
    write(tmp_path, "b.md", "---\nname: b\n---\nB")
    write(tmp_path, "a/deep/c.md", "---\nname: c\n---\nC")
    write(tmp_path, "notes.txt", "---\nname: no\n---\n")

    assert [file.text("name") for file in read_agent_files(tmp_path)] == ["c", "b"]
    assert read_agent_files(tmp_path / "nowhere") == []


def test_keeps_all_of_the_front_matter(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "---\nname: a\nsince: 2026-01-02\nhooks:\n  Stop: [x, y]\nmax: 3\n---\nA")
    (file,) = read_agent_files(tmp_path)

    assert json.loads(file.json) == {"name": "a", "since": "2026-01-02", "hooks": {"Stop": ["x", "y"]}, "max": 3}


@pytest.mark.parametrize(
    ("written", "expected"),
    [("Read, Grep ,", ["Read", "Grep"]), ("[Read, Grep]", ["Read", "Grep"]), ("5", []), ("''", [])],
)
def test_lists_are_lists_or_text_with_commas(tmp_path: Path, written: str, expected: list[str]) -> None:
    write(tmp_path, "a.md", f"---\ntools: {written}\n---\n")
    (file,) = read_agent_files(tmp_path)

    assert file.texts("tools") == expected
    assert file.texts("nothing") == []


def test_takes_a_bare_colon_in_a_description(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "---\nname: a\ndescription: Use it: when <x>b: c</x>\nempty:\n---\nA")
    (file,) = read_agent_files(tmp_path)

    assert file.metadata == {"name": "a", "description": "Use it: when <x>b: c</x>", "empty": ""}


def test_leaves_out_and_logs_what_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_files, "MAX_FILE_BYTES", 100)
    write(tmp_path, "good.md", "---\nname: good\n---\n")
    write(tmp_path, "indented.md", "---\nname: x\n\ttools: [\n---\n")
    write(tmp_path, "large.md", "---\nname: x\n---\n" + "x" * 100)
    (tmp_path / "binary.md").write_bytes(b"---\nname: \xff\xfe\n---\n")
    with caplog.at_level(logging.WARNING):
        files = read_agent_files(tmp_path)

    assert [file.text("name") for file in files] == ["good"]
    for name in ("indented.md", "large.md", "binary.md"):
        assert name in caplog.text


def test_reads_no_more_files_than_its_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_files, "MAX_FILES", 2)
    for name in "abc":
        write(tmp_path, f"{name}.md", f"---\nname: {name}\n---\n")

    assert [file.text("name") for file in read_agent_files(tmp_path)] == ["a", "b"]
    assert "3 agents" in caplog.text
