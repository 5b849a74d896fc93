"""Exceptions that the command line turns into one clean line and an exit code."""


def printable(text: str) -> str:
    """A name as a message shows it: unchanged, unless it would break the line or the terminal."""
    return text if text.isprintable() else ascii(text)


class BsnnError(Exception):
    """A failure whose message is all a user needs; the traceback is kept out of the terminal.

    Attributes:
        exit_code: what the process ends with. 1 = failed after work had begun.
    """

    exit_code = 1


class ConfigError(BsnnError, ValueError):
    """Rejected before anything ran: a value, a combination of values or a device that cannot be used."""

    exit_code = 2


class DataError(BsnnError):
    """A dataset is absent, cannot be fetched, or does not match its checksum. Rejected before anything ran."""

    exit_code = 2


class ActivationError(ConfigError):
    """A function that has no Gaussian-Poincaré normalised form, with the reason."""


class RunDirectoryError(BsnnError):
    """A run directory that belongs to another configuration, or cannot be written."""

    exit_code = 2


class StorageError(BsnnError):
    """A disk is full, or a file cannot be written, in the middle of a run."""


class CheckpointError(BsnnError):
    """No usable checkpoint is left, though there has been one."""


class RunLockedError(BsnnError):
    """Another process is working on the same run."""


class Interrupted(BsnnError):  # noqa: N818 - not a failure: the run can be resumed
    """A signal asked the process to stop; the state is saved.

    Args:
        signal_number: as in the `signal` module; the exit code is 128 + this number.
        message: what was saved and how to go on.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
