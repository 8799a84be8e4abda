"""A session's record inside of a unit."""

from karta import v1
from karta_server.errors import KartaError
from karta_server.storage.contract import SessionKey, Tx


def session_not_found(key: SessionKey) -> KartaError:
    """Return the error of a session that is not there, or is another tenant's."""
    return KartaError(
        v1.ERROR_REASON_SESSION_NOT_FOUND,
        f"There is no session {key.session_id!r}; ListSessions shows those that you have.",
        session_id=key.session_id,
    )


def read_session(tx: Tx, key: SessionKey) -> v1.Session:
    """Return a session inside of a unit, or raise SESSION_NOT_FOUND."""
    session = tx.sessions.get(key)
    if session is None:
        raise session_not_found(key)
    return session


def check_etag(session: v1.Session, etag: str) -> None:
    """Refuse a change that was made on an older state of the session."""
    if etag and etag != session.etag:
        raise KartaError(
            v1.ERROR_REASON_ETAG_MISMATCH,
            "The session changed since you read it; read it again and repeat the change.",
            etag=session.etag,
        )


def touch(session: v1.Session) -> None:
    """Give the session a new etag."""
    session.etag = str(int(session.etag) + 1)
