"""The error family of every `omics` package, with the exit code each one ends a command with.

- Every error is also the built-in error it resembles, so `except ValueError` keeps working.
- `code` is a short stable name for machines (`--json`); `exit_code` is what the shell sees.
- A message is one paragraph: what was found, where, and what to do about it.
"""

from __future__ import annotations

import errno

EXIT_USAGE = 2
EXIT_INPUT_DATA = 3
EXIT_CORRUPT = 4
EXIT_RESOURCES = 5
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130


class OmicsError(Exception):
    """Base of all errors that `omics` raises on purpose."""

    code = "error"
    exit_code = 1

    def __str__(self) -> str:
        """Return the message itself (KeyError and OSError would decorate it)."""
        return str(self.args[0]) if self.args else self.__class__.__name__


class UsageError(OmicsError, ValueError):
    """An argument or option that cannot be used as given."""

    code = "usage"
    exit_code = EXIT_USAGE


class ConfigError(OmicsError, ValueError):
    """A configuration that does not fit its schema or itself."""

    code = "config"
    exit_code = EXIT_USAGE


class UnknownNameError(OmicsError, KeyError):
    """A name (label column, field, split, transform, ...) that does not exist here."""

    code = "unknown-name"
    exit_code = EXIT_USAGE


class MissingPathError(OmicsError, FileNotFoundError):
    """A path given by the user that does not exist."""

    code = "missing-path"
    exit_code = EXIT_USAGE


class ExistingPathError(OmicsError, FileExistsError):
    """An output path that exists and was not allowed to be replaced."""

    code = "existing-path"
    exit_code = EXIT_USAGE


class MissingExtraError(OmicsError, ImportError):
    """An optional dependency that is not installed; the message names the pip command."""

    code = "missing-extra"
    exit_code = EXIT_USAGE


class InputDataError(OmicsError, ValueError):
    """A source file whose content cannot be used."""

    code = "input-data"
    exit_code = EXIT_INPUT_DATA


class CorruptStoreError(OmicsError, ValueError):
    """A store whose bytes are not the ones that were written."""

    code = "corrupt-store"
    exit_code = EXIT_CORRUPT


class StoreVersionError(OmicsError, ValueError):
    """A store written by a newer version than this one can read."""

    code = "store-version"
    exit_code = EXIT_CORRUPT


class StoreLockedError(OmicsError, RuntimeError):
    """Another process is writing the same store."""

    code = "store-locked"
    exit_code = EXIT_RESOURCES


class ResourceError(OmicsError, OSError):
    """Out of disk, memory or another resource of the machine."""

    code = "resources"
    exit_code = EXIT_RESOURCES


class StoppedError(OmicsError, RuntimeError):
    """Work that was asked to stop and can go on where it was."""

    code = "stopped"
    exit_code = EXIT_STOPPED


class OmicsWarning(UserWarning):
    """What a person should know of something long that goes on."""


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an error says that the system gave no memory.

    Args:
        error: of Python, of a file that is mapped, a thread that is started, a library that is
            loaded.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        return "can't start new thread" in str(error)
    if isinstance(error, ImportError):
        signs = ("Cannot allocate memory", "failed to map segment")
        return any(sign in str(error) for sign in signs)
    return isinstance(error, MemoryError)


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return a hint for a mistyped name.

    Args:
        name: what the user gave.
        known: the names that exist.

    Returns:
        ` Did you mean 'x'?`, or the known names (at most ten) when none is close.
    """
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    if not known:
        return " There are none."
    shown = ", ".join(repr(item) for item in list(known)[:10])
    more = f" and {len(known) - 10} more" if len(known) > 10 else ""
    return f" Known: {shown}{more}."
