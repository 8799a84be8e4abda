"""The rules of the house that a machine can check: who may import whom, who may do what, how large things are."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVER, CLIENT = ROOT / "karta_server", ROOT / "karta_client"
MODULES = sorted([*SERVER.rglob("*.py"), *CLIENT.rglob("*.py")])
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 70
VAGUE = re.compile(r"utils?|helpers?|managers?|common|misc")

# The keeper is a program of its own, whose environment is its argument.
ENVIRONMENT_READERS = (SERVER / "config.py", SERVER / "harness" / "keeper.py")
# A transaction is the writer's alone; the schema is made before there is one.
TRANSACTION_OPENERS = {"transaction.py", "schema.py"}
TRANSACTION_USERS = {"writer.py"}

# Rooms from the top down; each may use itself, and the rooms and single modules that are named.
ROOMS = {
    "cli": {"dev", "doctor", "hosting", "leaves", "config", "storage"},
    # A client with a server of its own, so it uses what clients use.
    "dev": {"leaves", "karta_client"},
    "adapters": {"config", "harness"},
    "doctor": {"adapters", "leaves", "config", "harness", "storage"},
    "hosting": {"server", "leaves", "config", "storage"},
    "server": {"services", "interceptors", "core", "storage", "harness", "adapters", "leaves", "config"},
    "services": {"interceptors", "core", "storage", "leaves"},
    "interceptors": {"core", "leaves"},
    "core": {"storage", "harness", "leaves"},
    "storage": {"leaves"},
    "harness": {"leaves", "karta_server.storage.contract", "karta_server.testing.script"},
    "config": {"leaves"},
    "leaves": set(),
    "testing": {"leaves", "harness", "hosting", "config", "server", "karta_client"},
}
# Modules directly in karta_server that belong to a room of another name.
ROOM_OF_MODULE = {
    "addresses": "config",
    "dev_reload": "dev",
    "jsonc": "config",
    "settings": "config",
    "error_codes": "leaves",
    "errors": "leaves",
    "framing": "leaves",
    "hold": "hosting",
    "ids": "leaves",
    "sockets": "hosting",
}
# Of storage and harness, core knows the contracts alone, and harness/supervisor.py, which is handed to it.
CORE_MAY_IMPORT = {
    "karta_server.storage",
    "karta_server.storage.contract",
    "karta_server.harness",
    "karta_server.harness.contract",
    "karta_server.harness.supervisor",
    "karta_server.harness.registry",
}


# Parsed now and not in the tests: threads that earlier tests left running disturb the parser of Python 3.11.
TREES = {path: ast.parse(path.read_text(), str(path)) for path in MODULES}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever it does, with the line; `from a import b` may mean a.b."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(path, node.lineno)}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name if is_module(name) else str(node.module), node.lineno) for name in names)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def room(name: str) -> str:
    """The room of a dotted name: karta_server.core.turns is in core."""
    top, _, rest = name.partition(".")
    if top != "karta_server":
        return top
    first = rest.partition(".")[0]
    return ROOM_OF_MODULE.get(first, first)


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def calls(path: Path, *names: str) -> Iterator[str]:
    """Where a file says one of these names."""
    for node in ast.walk(TREES[path]):
        found = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
        if found in names:
            yield f"{where(path, node.lineno)}: {found}"


def test_there_is_something_to_check():
    assert len(MODULES) > 40
    assert {room(dotted(path)) for path in SERVER.rglob("*.py")} - {"karta_server", ""} <= set(ROOMS)


def test_imports_point_down():
    wrong = []
    for path in SERVER.rglob("*.py"):
        own = room(dotted(path))
        allowed = ROOMS.get(own, set()) | {own}
        for name, line in imports(path):
            if name.partition(".")[0] in ("karta_server", "karta_client") and not {room(name), name} & {*allowed, ""}:
                wrong.append(f"{where(path, line)}: {own} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_core_knows_contracts_and_nothing_of_the_wire():
    wrong = []
    for path in (SERVER / "core").rglob("*.py"):
        for name, line in imports(path):
            top = name.partition(".")[0]
            if top in ("grpc", "sqlalchemy", "aiosqlite", "alembic", "grpc_health") or name.endswith("_pb2_grpc"):
                wrong.append(f"{where(path, line)}: {name}")
            if room(name) in ("storage", "harness") and name not in CORE_MAY_IMPORT:
                wrong.append(f"{where(path, line)}: {name}")
    assert not wrong, "\n".join(wrong)


def test_backends_know_their_contract_alone():
    wrong = [
        f"{where(path, line)}: {name}"
        for path in (SERVER / "storage").rglob("*.py")
        for name, line in imports(path)
        if name.partition(".")[0] == "grpc"
    ]
    assert not wrong, "\n".join(wrong)


def test_client_does_not_import_the_server():
    wrong = [
        f"{where(path, line)}: {name}"
        for path in CLIENT.rglob("*.py")
        for name, line in imports(path)
        if name.partition(".")[0] == "karta_server"
    ]
    assert not wrong, "\n".join(wrong)


def test_client_names_the_server_in_one_place():
    named = {
        path.name
        for path in CLIENT.rglob("*.py")
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "karta_server." in node.value
    }
    assert named == {"server_process.py"}


def test_only_config_reads_the_environment():
    readers = [
        place
        for path in SERVER.rglob("*.py")
        if path not in ENVIRONMENT_READERS and not path.is_relative_to(SERVER / "testing")
        for place in calls(path, "environ", "environb", "getenv")
    ]
    assert not readers, "\n".join(readers)


def test_only_the_writer_opens_write_transactions():
    folder = SERVER / "storage" / "sql"
    sources = [path for path in folder.rglob("*.py") if "migrations" not in path.parts]
    openers = {
        path.name
        for path in sources
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Attribute)
        and node.attr in ("begin", "begin_nested", "begin_twophase")
        and re.search(r"connection|engine", ast.unparse(node.value))
    }
    assert openers == TRANSACTION_OPENERS
    users = {
        path.name
        for path in sources
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Transaction"
    }
    assert users == TRANSACTION_USERS


def test_stdout_is_for_the_command_line():
    wrong = [
        place
        for path in SERVER.rglob("*.py")
        if room(dotted(path)) not in ("cli", "dev", "testing")
        for place in calls(path, "print")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_and_names(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_MODULE_LINES, f"{lines} lines"
    assert not VAGUE.fullmatch(path.stem), f"{path.stem} says nothing"
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{where(path, node.lineno)}: {node.name} has {length} lines"


def test_folders_have_names_too():
    folders = {path.parent for path in MODULES}
    assert not [folder for folder in folders if VAGUE.fullmatch(folder.name)]
