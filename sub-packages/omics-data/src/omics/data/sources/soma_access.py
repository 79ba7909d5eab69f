"""Opening TileDB-SOMA objects wherever they lie, with a limit to patience and readable errors.

- Buffers are kept small: the defaults of tiledbsoma take gigabytes for each read.
- AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3) names another S3 server, as it does for boto3.
- A request that S3 fails for a passing reason is repeated a few times, with longer and longer
  waits; everything else fails at once.
"""

from __future__ import annotations

import os
import re
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from omics.data.errors import (
    InputDataError,
    MissingExtraError,
    MissingPathError,
    OmicsError,
    ResourceError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

REMOTE_SCHEMES = ("s3", "gs", "azure", "tiledb")
# Seconds before the second, third and fourth try.
WAITS = (1.0, 4.0, 15.0)

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}(.+)")
_S3_HOST = re.compile(r"(?:(.+)\.)?s3[.-]([a-z0-9-]+)\.amazonaws\.com")
_PASSING = re.compile(
    r"timed? ?out|timeout|slow ?down|service ?unavailable|internal ?error|connection|"
    r"curlcode|unable to connect|\b50[0234]\b|request ?limit|throttl",
    re.IGNORECASE,
)
_Found = TypeVar("_Found")
_BUFFER_BYTES = 16 * 2**20
_BUDGET_BYTES = 512 * 2**20
_REASON_LENGTH = 300


def tiledbsoma() -> Any:
    """Return the module.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module("tiledbsoma")
    except ImportError:
        raise MissingExtraError(
            "Reading TileDB-SOMA needs tiledbsoma: pip install 'omics-data[soma]'"
        ) from None


def normal_address(address: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Return an address as TileDB takes it, and the S3 region if the address says it.

    Args:
        address: a path, an address such as `s3://bucket/folder` (also one that went through
            `pathlib`, which makes one slash of two), or the `https://` address of an S3 folder.
    """
    text = os.fspath(address)
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return str(Path(text).absolute()), None
    scheme, rest = found[1], found[2].rstrip("/")
    if scheme == "file":
        return f"/{rest.lstrip('/')}", None
    if scheme in {"http", "https"}:
        host, _, path = rest.partition("/")
        amazon = _S3_HOST.fullmatch(host)
        if amazon is not None:
            place = f"{amazon[1]}/{path}" if amazon[1] else path
            return f"s3://{place}", amazon[2]
    return f"{scheme}://{rest}", None


def is_remote(address: str) -> bool:
    """Say whether a normal address is of another machine.

    Args:
        address: from `normal_address`.
    """
    return address.partition("://")[0] in REMOTE_SCHEMES and "://" in address


def soma_context(*, region: str | None = None, anonymous: bool = False) -> Any:
    """Return the context that objects are opened with.

    Args:
        region: of S3; by default what AWS_REGION or AWS_DEFAULT_REGION says.
        anonymous: do not sign requests, as for public buckets.
    """
    config: dict[str, Any] = {
        "soma.init_buffer_bytes": _BUFFER_BYTES,
        "sm.mem.total_budget": _BUDGET_BYTES,
    }
    region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        config["vfs.s3.region"] = region
    if anonymous:
        config["vfs.s3.no_sign_request"] = "true"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        parts = urlsplit(endpoint)
        config["vfs.s3.scheme"] = parts.scheme
        config["vfs.s3.endpoint_override"] = parts.netloc
        config["vfs.s3.use_virtual_addressing"] = "false"
    return tiledbsoma().SOMATileDBContext(tiledb_config=config)


def reason_of(error: BaseException) -> str:
    """Return the first sentence of an error of tiledbsoma, which may print half a stack.

    Args:
        error: any.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return first.removeprefix("SOMAError: ").strip("'\" .")[:_REASON_LENGTH]


def explained(error: BaseException, address: str) -> OmicsError:
    """Return our error for one of tiledbsoma.

    Args:
        error: what was raised.
        address: of the experiment.
    """
    reason = reason_of(error)
    if isinstance(error, tiledbsoma().DoesNotExistError):
        where = (
            " Check the address, --region, and whether it is public." if "://" in address else ""
        )
        return MissingPathError(f"There is no SOMA experiment at {address} ({reason}).{where}")
    if is_remote(address) and _PASSING.search(reason):
        return ResourceError(
            f"{address} could not be read in {len(WAITS) + 1} tries ({reason}). Check the network "
            "and try again; a conversion goes on where it stopped."
        )
    if re.search(r"access ?denied|forbidden|credentials|\b403\b", reason, re.IGNORECASE):
        return UsageError(
            f"{address} refuses access ({reason}). Set AWS_PROFILE or the AWS keys of an account "
            "that may read it, or give --anonymous for a public bucket."
        )
    return InputDataError(
        f"{address} cannot be read ({reason}). It is damaged, or was written by a version of "
        "tiledbsoma that this one does not read."
    )


def patiently(read: Callable[[], _Found], address: str) -> _Found:
    """Return what a read gives, trying again where another try may help.

    Args:
        read: does the whole read from its beginning.
        address: of the experiment; only remote ones are tried again.

    Raises:
        OmicsError: it failed for good.
    """
    for wait in (*WAITS, None):
        try:
            return read()
        except (tiledbsoma().SOMAError, RuntimeError) as error:
            passing = is_remote(address) and _PASSING.search(str(error)) is not None
            if not passing or wait is None:
                raise explained(error, address) from error
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")
