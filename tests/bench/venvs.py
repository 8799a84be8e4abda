"""The peers' packages, in environments of their own below .cache/bench; never in the project's."""

import subprocess
import sys
from pathlib import Path

from tests.bench.processes import ROOT, BenchError

FOLDER = ROOT / ".cache" / "bench"
_INSTALL_SECONDS = 900
REQUIREMENTS = {
    "web": ("sse-starlette==3.7.0", "fastapi==0.165.0", "starlette==1.10.0", "uvicorn[standard]==0.54.0"),
    "upstream": ("karta-runtime==0.1.0",),
    "tools": ("py-spy==0.4.3",),
}


def python(name: str) -> Path:
    """Return the interpreter of an environment, made now if need be. Raises BenchError when it cannot be."""
    folder = FOLDER / name
    wanted = "\n".join(REQUIREMENTS[name])
    stamp = folder / "installed"
    interpreter = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    print(f"installing {', '.join(REQUIREMENTS[name])} into {folder.relative_to(ROOT)} ...", flush=True)  # noqa: T201
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    _run(str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS[name])
    stamp.write_text(wanted)
    return interpreter


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{command[0]} took longer than {_INSTALL_SECONDS} s") from error
    if done.returncode:
        raise BenchError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-500:]}")
