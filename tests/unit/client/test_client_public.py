"""What can be imported, and what importing costs."""

import subprocess
import sys
from pathlib import Path

import pytest

import karta
import karta_client
from karta_client import InvalidArgumentError, Karta


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()


def test_both_packages_offer_the_same_sorted_names() -> None:
    assert karta_client.__all__ == sorted(karta_client.__all__) == karta.__all__
    assert set(karta_client._MODULES) == set(karta_client.__all__)


def test_every_name_can_be_had() -> None:
    for name in karta_client.__all__:
        assert getattr(karta, name) is getattr(karta_client, name)
    assert set(karta_client.__all__) < set(dir(karta_client))
    with pytest.raises(AttributeError):
        karta.Nothing  # noqa: B018 - the access is the test
    with pytest.raises(AttributeError):
        karta_client.Nothing  # noqa: B018 - the access is the test


def test_importing_loads_nothing() -> None:
    heavy = "[name for name in sys.modules if name.startswith(('grpc', 'google', 'asyncio'))]"
    assert run(f"import sys, karta, karta_client; print({heavy})") == "[]"
    assert run("import sys; from karta import v1; print('grpc' in sys.modules, 'karta_client' in sys.modules)") == (
        "False False"
    )


def test_forks_are_provided_for_before_grpc_is_loaded() -> None:
    code = "import os, sys, karta_client; print('grpc' in sys.modules, os.environ['GRPC_ENABLE_FORK_SUPPORT'])"
    assert run(code) == "False 1"


def test_the_constructor_does_nothing(tmp_path: Path) -> None:
    with Karta(project=tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["localhost", "http://localhost:1", ":1", "unix:"])
def test_a_target_is_an_address(target: str) -> None:
    with pytest.raises(InvalidArgumentError, match="HOST:PORT") as caught:
        Karta(target)
    assert caught.value.metadata == {"field": "target"}


def test_the_target_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARTA_TARGET", "unix:/tmp/x.sock")
    assert Karta()._settings.target == "unix:/tmp/x.sock"
    assert Karta("127.0.0.1:1")._settings.target == "127.0.0.1:1"
