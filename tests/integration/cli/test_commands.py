"""The other commands of karta-runtime."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

from serving import dev_serve


def test_help_teaches(run):
    shown = run("karta_server.cli", "--help")
    assert shown.returncode == 0
    for word in ("dev ", "dev-serve", "doctor", "migrate", "Examples:"):
        assert word in shown.stdout
    for command in ("dev-serve", "doctor", "migrate"):
        shown = run("karta_server.cli", command, "--help")
        assert shown.returncode == 0
        assert "Examples:" in shown.stdout


def test_version(run):
    assert run("karta_server.cli", "--version").stdout.startswith("karta-runtime, version ")


def test_help_loads_nothing_heavy(environment):
    code = "import sys, karta_server.cli; print([m for m in ('grpc', 'sqlalchemy', 'karta.v1') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_settings_are_shown(run):
    shown = run("karta_server.cli", "dev-serve", "--settings")
    assert shown.returncode == 0
    assert "KARTA_LIMITS_MAX_MESSAGE_BYTES" in shown.stdout


def test_doctor_of_a_project_that_is_ready(project, run):
    (project / "karta.jsonc").write_text('{"harness": {"name": "scripted"}}')
    text = run("karta_server.cli", "doctor", project)
    assert text.returncode == 0, text.stdout + text.stderr
    assert "A session can run here." in text.stdout
    found = json.loads(run("karta_server.cli", "doctor", project, "--output", "json").stdout)
    assert found["ready"]
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert by_name["configuration"]["detail"] == str(project / "karta.jsonc")
    assert by_name["harness scripted"]["good"]
    assert by_name["schema"]["detail"].endswith("made at the first start")
    assert not (project / ".karta").exists()


def test_doctor_says_what_is_wrong_and_what_to_do(project, run):
    (project / "karta.jsonc").write_text('{"harness": {"name": "scripted",}, "agnet": 1}')
    shown = run("karta_server.cli", "doctor", project)
    assert shown.returncode == 1
    assert "FAILED  configuration" in shown.stdout
    assert "->" in shown.stdout


def test_doctor_of_an_unknown_harness(project, run, environment):
    environment["KARTA_HARNESS"] = "codex"
    shown = run("karta_server.cli", "doctor", project)
    assert shown.returncode == 1
    assert "claude_code, scripted" in shown.stdout


def test_doctor_knows_the_server_that_runs(project, run, environment):
    with dev_serve(project, environment, "--listen", "127.0.0.1:0") as served:
        shown = run("karta_server.cli", "doctor", project, "--output", "json")
    by_name = {finding["name"]: finding for finding in json.loads(shown.stdout)["findings"]}
    assert str(served.process.pid) in by_name["state"]["detail"]
    assert served.address in by_name["address"]["detail"]


def test_doctor_of_a_newer_database(project, run):
    assert run("karta_server.cli", "migrate", project, "--apply").returncode == 0
    with sqlite3.connect(project / ".karta" / "karta.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    shown = run("karta_server.cli", "doctor", project)
    assert shown.returncode == 1
    assert "9999" in shown.stdout
    assert run("karta_server.cli", "migrate", project, "--apply").returncode == 70


def test_migrate_shows_then_applies(project, run):
    shown = run("karta_server.cli", "migrate", project)
    assert shown.returncode == 0
    assert "none yet" in shown.stdout
    assert "--apply" in shown.stdout
    assert not (project / ".karta").exists()
    applied = run("karta_server.cli", "migrate", project, "--apply")
    assert applied.returncode == 0
    assert "--apply" not in applied.stdout


def test_migrate_keeps_off_a_running_server(project, run, environment):
    with dev_serve(project, environment, "--listen", "127.0.0.1:0"):
        assert run("karta_server.cli", "migrate", project, "--apply").returncode == 75


def test_installed_script(environment):
    script = Path(sys.executable).with_name("karta-runtime")
    ended = subprocess.run([script, "--version"], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("karta-runtime, version ")
