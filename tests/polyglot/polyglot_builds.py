"""What build.sh has built."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Imported by conftest.py, before the environment is reduced for the tests.
REQUIRED = os.environ.get("KARTA_REQUIRE_TOOLCHAINS", "") not in ("", "0")


def require_built(language: str, product: Path) -> None:
    """Skip the test when build.sh has skipped the language; fail it when it should have built the product."""
    note = HERE / "build" / f"{language}.skipped"
    if note.exists():
        pytest.skip(f"{language}: {note.read_text().strip()}")
    if not product.exists():
        (pytest.fail if REQUIRED else pytest.skip)(f"{language} is not built: run `make test-polyglot`")
