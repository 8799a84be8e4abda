"""Makes programs that run a harness under its keeper."""

import hashlib
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from karta_server.harness import keeper


def write_launcher(folder: Path, program: Path, names: Iterable[str]) -> Path:
    """Return an executable that runs `program` under a keeper, with its own arguments.

    Of the environment only the variables called `names` reach the program; their
    values are those that the launcher is started with, and are not written down.
    The file is in `folder`, which is made when missing, and stays the same for
    the same arguments. Raises OSError.
    """
    command = [sys.executable, "-ISE", str(Path(keeper.__file__).resolve()), ",".join(sorted(set(names))), str(program)]
    script = f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    launcher = folder / f"{program.name}-{hashlib.sha256(script.encode()).hexdigest()[:16]}"
    if not launcher.exists():
        # Renamed into place: a half-written launcher is never run, and one that runs is never written to.
        descriptor, draft = tempfile.mkstemp(prefix=f".{launcher.name}-", dir=folder)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o700)
            file.write(script)
        Path(draft).replace(launcher)
    return launcher
