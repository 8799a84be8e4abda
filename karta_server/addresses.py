"""Where a server may listen: loopback and Unix sockets, until there is authentication."""

import hashlib
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

from karta import v1
from karta_server.errors import KartaError

# The kernel takes 108 bytes with the closing zero.
_SOCKET_PATH_BYTES = 107
_PRIVATE_SOCKET_BYTES = 100


def listen_address(listen: str) -> str:
    """Return the address as grpc takes it: "HOST:PORT" or "unix:/absolute/path".

    Raises KartaError CONFIG_INVALID when it is no address, ADDRESS_REFUSED when
    others than this machine could reach it.
    """
    if listen.startswith("unix:"):
        return f"unix:{_socket_path(listen.removeprefix('unix:'))}"
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise _invalid(f"{listen[:200]!r} is no address to serve on: use HOST:PORT, as 127.0.0.1:7400, or unix:/path.")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not _is_loopback(bare):
        message = (
            f"Karta does not serve on {listen[:200]!r} yet: without authentication, anybody there could run agents as "
            "you. Use 127.0.0.1:PORT, [::1]:PORT or unix:/path, and an SSH tunnel to reach it from elsewhere."
        )
        raise KartaError(v1.ERROR_REASON_ADDRESS_REFUSED, message, address=listen[:200])
    return f"[{bare}]:{int(port)}" if ":" in bare else f"{bare}:{int(port)}"


def socket_folder(state: Path, others: Iterable[Path]) -> Path:
    """Return the folder for a state directory's private sockets: itself, if the sockets' paths are short
    enough; else one in the first of `others` that exists, named after the user and the state directory."""
    if _is_short(state):
        return state
    # The same for every program that means this state directory.
    name = f"karta-{os.getuid()}-{hashlib.sha256(os.fsencode(state)).hexdigest()[:16]}"
    folders = [other / name for other in others if other.is_dir()]
    return next((folder for folder in folders if _is_short(folder)), Path("/tmp", name))  # noqa: S108  # made 0700


def _is_short(folder: Path) -> bool:
    return len(os.fsencode(folder / "karta.sock")) < _PRIVATE_SOCKET_BYTES


def _socket_path(path: str) -> Path:
    # unix:///path is the same place.
    path = path.removeprefix("//")
    if not path:
        raise _invalid("unix: needs a path, as unix:/run/karta.sock.")
    whole = Path(path).absolute()
    size = len(os.fsencode(whole))
    if size > _SOCKET_PATH_BYTES:
        raise _invalid(f"The socket's path has {size} bytes, the system takes {_SOCKET_PATH_BYTES}: {whole}")
    return whole


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _invalid(message: str) -> KartaError:
    return KartaError(v1.ERROR_REASON_CONFIG_INVALID, message, setting="listen")
