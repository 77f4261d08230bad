"""Every error a user can cause or meet, as one tree.

RemixError
├── ConfigError              a setting or option is wrong
├── CheckpointError          an adapter folder is refused
│   ├── CheckpointFormatError    a file, tensor or field is missing, broken or not allowed
│   ├── CheckpointMismatchError  the adapter does not fit this base model, or is another one
│   └── ParityError              replaying parity.safetensors gave other routes or logits
├── RequestError             one generation request is refused; others go on
│   ├── InvalidRequestError      a field of the request is wrong (`param` names it)
│   ├── AdapterNotLoadedError    the digest is not loaded in this engine
│   ├── AdapterUnavailableError  the adapter's folder is gone or has changed since it was loaded
│   ├── ReplicaLostError         the replica that computed the request ended; try again
│   └── EngineBusyError          the queue is full or the engine drains; try again (`retry_after`)
├── CapacityError            an adapter or a request can never fit the stated memory budget
├── EngineDeadError          the engine stopped working; the process should be replaced
├── ChatTemplateError        the base's chat template does not render these messages
├── DataError                a training or evaluation file is wrong (file and line named)
└── TrainingError            training cannot go on (a NaN loss, a checkpoint of another run)

A message names what was found, what was expected and, where there is one, the fix.
`assert` is for our own invariants only and never guards against input.
"""

from __future__ import annotations


class RemixError(Exception):
    """Root of all errors that a user can cause or meet."""


class ConfigError(RemixError):
    """A setting or command-line option is wrong."""


class CheckpointError(RemixError):
    """An adapter folder is refused."""


class CheckpointFormatError(CheckpointError):
    """A file, tensor or field of the folder is missing, broken or not allowed."""


class CheckpointMismatchError(CheckpointError):
    """The adapter is well formed but does not fit the base model it is loaded on, or it is another
    one than was expected in its folder."""


class ParityError(CheckpointError):
    """Replaying `parity.safetensors` gave other routes or logits than training wrote."""


class RequestError(RemixError):
    """One generation request is refused; other requests are not affected."""


class InvalidRequestError(RequestError):
    """A field of the request is wrong. `param` names it, in the API's spelling."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class AdapterNotLoadedError(RequestError):
    """The digest that the request names is not loaded in this engine."""


class AdapterUnavailableError(RequestError):
    """The adapter of this `digest` left memory, and its folder is gone or holds something else now.
    `retry_after` is in seconds."""

    def __init__(
        self, message: str, *, digest: str | None = None, retry_after: float = 10.0
    ) -> None:
        super().__init__(message)
        self.digest = digest
        self.retry_after = retry_after


class EngineBusyError(RequestError):
    """The queue is full or the engine drains. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ReplicaLostError(RequestError):
    """The process or machine that computed the request ended; others go on. Sent again, the request
    goes elsewhere."""


class CapacityError(RemixError):
    """An adapter or a request can never fit the stated memory budget."""


class EngineDeadError(RemixError):
    """The engine stopped working; nothing but a new process helps."""


class ChatTemplateError(RemixError):
    """The base's chat template refuses these messages, or fails on them. Who called it says whose
    mistake that is: a request's, a row's, or the base's."""


class DataError(RemixError):
    """A training or evaluation file is wrong; the message names file and line."""


class TrainingError(RemixError):
    """Training cannot go on: a NaN loss, or a checkpoint that belongs to another run."""
