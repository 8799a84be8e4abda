"""The one exception that every room of the server raises for a failure it can name."""

from karta import v1


class KartaError(Exception):
    """A failure with a reason from the contract.

    `message` says what happened and what to do about it. `metadata` holds what
    the reason's comment in proto/karta/v1/error.proto documents; values are
    turned into text. interceptors/errors.py maps it to a gRPC status.
    """

    def __init__(self, reason: v1.ErrorReason.ValueType, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = {key: str(value) for key, value in metadata.items()}
