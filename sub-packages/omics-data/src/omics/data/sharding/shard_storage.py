"""Where shards lie: a local folder, an S3 bucket, or any other file system that fsspec knows.

- Three operations are enough (list sizes, read a range, write whole files), so a reader asks for
  exactly the bytes of a block and notices at once what is missing or too short; nothing waits for
  a file that never comes.
- S3 is read with boto3 (which litdata brings): AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE and the
  other standard variables count. Without credentials requests are not signed, as public buckets
  like it.
- Other addresses (`gs://`, `memory://`, ...) need the fsspec package of their file system.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from omics.data.atomic_files import remove_path, write_bytes
from omics.data.errors import (
    CorruptStoreError,
    MissingExtraError,
    MissingPathError,
    ResourceError,
    UsageError,
)

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(.+)")
_READ_ATTEMPTS = 3


class ShardFolder(Protocol):
    """A place that holds the files of a set of shards."""

    @property
    def name(self) -> str:
        """The path or address, for messages."""
        ...

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file directly in it, `{name: bytes}`.

        Raises:
            MissingPathError: there is no such folder or bucket.
        """
        ...

    def read(self, file: str, begin: int, size: int) -> bytes:
        """Return a range of a file.

        Args:
            file: a name from `sizes`.
            begin: the first byte.
            size: how many.

        Raises:
            CorruptStoreError: the file is missing or ends before the range does.
            ResourceError: the place cannot be reached.
        """
        ...

    def write(self, file: str, data: bytes) -> None:
        """Write a whole file; it appears when it is complete.

        Args:
            file: its name.
            data: its content.
        """
        ...

    def remove(self, file: str) -> None:
        """Remove a file that exists.

        Args:
            file: its name.
        """
        ...


def split_address(address: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return scheme and rest of an address, or None for a path.

    Args:
        address: such as `s3://bucket/folder`; one that went through `pathlib`, which makes one
            slash of two, is understood as well.
    """
    found = _ADDRESS.fullmatch(os.fspath(address))
    return (found[1].lower(), found[2].rstrip("/")) if found else None


def shard_folder(address: str | os.PathLike[str]) -> ShardFolder:
    """Return the place that an address names; nothing is read yet.

    Args:
        address: a path, `s3://bucket/folder`, or an address of another fsspec file system.

    Raises:
        UsageError: an S3 address without a folder, or a scheme that nothing here knows.
        MissingExtraError: the package that reads the address is not installed.
    """
    parts = split_address(address)
    if parts is None or parts[0] == "file":
        return LocalFolder(Path(address) if parts is None else Path("/", parts[1]))
    scheme, rest = parts
    if scheme == "s3":
        bucket, _, folder = rest.partition("/")
        if not folder:
            raise UsageError(f"{address} names a bucket only; give s3://BUCKET/FOLDER.")
        return S3Folder(bucket, folder)
    return FsspecFolder(scheme, rest)


def absent(name: str, file: str) -> CorruptStoreError:
    """Return the error for a file of a set of shards that is not there."""
    return CorruptStoreError(
        f"{file} is missing in {name}. Copy the shards again from where they are whole, or write "
        "them again with omics-data shard."
    )


def cut_short(name: str, file: str, found: int, wanted: int) -> CorruptStoreError:
    """Return the error for a file that holds fewer bytes than it must."""
    return CorruptStoreError(
        f"{file} in {name} is cut short: {found:,} bytes where {wanted:,} were asked for. Copy the "
        "shards again from where they are whole, or write them again with omics-data shard."
    )


class LocalFolder:
    """Shards in a folder of this machine.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def sizes(self) -> dict[str, int]:
        """Return the size of every file; see `ShardFolder`."""
        if not self.path.is_dir():
            what = "is a file, not a folder" if self.path.exists() else "does not exist"
            raise MissingPathError(f"{self.path} {what}. Give the folder of a set of shards.")
        with os.scandir(self.path) as entries:
            return {each.name: each.stat().st_size for each in entries if each.is_file()}

    def read(self, file: str, begin: int, size: int) -> bytes:
        """Return a range of a file; see `ShardFolder`."""
        try:
            descriptor = os.open(self.path / file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise absent(self.name, file) from None
        except PermissionError as error:
            raise ResourceError(f"{self.path / file} may not be read ({error.strerror}).") from None
        try:
            data = os.pread(descriptor, size, begin)
            while len(data) < size:
                more = os.pread(descriptor, size - len(data), begin + len(data))
                if not more:
                    raise cut_short(self.name, file, len(data), size)
                data += more
        except OSError as error:
            if isinstance(error, CorruptStoreError):
                raise
            raise ResourceError(f"{self.path / file} cannot be read ({error.strerror}).") from None
        finally:
            os.close(descriptor)
        return data

    def write(self, file: str, data: bytes) -> None:
        """Write a whole file; see `ShardFolder`."""
        write_bytes(self.path / file, data)

    def remove(self, file: str) -> None:
        """Remove a file; see `ShardFolder`."""
        remove_path(self.path / file)


class S3Folder:
    """Shards below a prefix of an S3 bucket.

    Args:
        bucket: its name.
        folder: the prefix, without a slash at its end.

    Raises:
        MissingExtraError: boto3 is not installed.
    """

    def __init__(self, bucket: str, folder: str) -> None:
        self._bucket = bucket
        self._folder = folder
        self._made: Any = None
        try:
            self._boto3, self._botocore = import_module("boto3"), import_module("botocore.config")
            self._failures = import_module("botocore.exceptions")
        except ImportError:
            raise MissingExtraError(
                "Shards in S3 need boto3: pip install 'omics-data[streaming]'"
            ) from None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as bucket and folder: a client cannot go to another process."""
        return S3Folder, (self._bucket, self._folder)

    @property
    def name(self) -> str:
        """The address."""
        return f"s3://{self._bucket}/{self._folder}"

    @property
    def _client(self) -> Any:
        if self._made is None:
            session = self._boto3.Session()
            signed = session.get_credentials() is not None
            options = self._botocore.Config(
                connect_timeout=10,
                read_timeout=60,
                retries={"total_max_attempts": 5, "mode": "standard"},
                max_pool_connections=32,
                **({} if signed else {"signature_version": import_module("botocore").UNSIGNED}),
            )
            region = None if session.region_name else "us-east-1"
            self._made = session.client("s3", config=options, region_name=region)
        return self._made

    def _call(self, operation: str, file: str = "", **arguments: Any) -> Any:
        key = {"Key": f"{self._folder}/{file}"} if file else {}
        try:
            return getattr(self._client, operation)(Bucket=self._bucket, **key, **arguments)
        except self._failures.ClientError as error:
            raise self._explained(error, file) from None
        except self._failures.BotoCoreError as error:
            raise ResourceError(
                f"{self.name} cannot be reached ({error}). Check the network, AWS_ENDPOINT_URL and "
                "AWS_REGION."
            ) from None

    def _explained(self, error: Any, file: str) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in {"NoSuchKey", "404"}:
            return absent(self.name, file)
        if code == "NoSuchBucket":
            return MissingPathError(f"There is no bucket {self._bucket} ({self.name}).")
        if code in {"InvalidRange", "416"}:
            return cut_short(self.name, file, 0, 1)
        if code in {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"}:
            return UsageError(
                f"{self.name} refuses access ({code}). Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, of an account that may use it."
            )
        return ResourceError(f"{self.name} answers with an error ({error}). Try again later.")

    def sizes(self) -> dict[str, int]:
        """Return the size of every object; see `ShardFolder`."""
        prefix, found = f"{self._folder}/", {}
        more: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=prefix, Delimiter="/", **more)
            for each in page.get("Contents", []):
                found[each["Key"].removeprefix(prefix)] = int(each["Size"])
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def read(self, file: str, begin: int, size: int) -> bytes:
        """Return a range of an object; see `ShardFolder`."""
        if size == 0:
            return b""
        where = f"bytes={begin}-{begin + size - 1}"
        data = b""
        for attempt in range(_READ_ATTEMPTS):
            answer = self._call("get_object", file, Range=where)
            try:
                data = answer["Body"].read()
                break
            except self._failures.BotoCoreError as error:
                # botocore repeats requests, but not an answer that breaks off half way.
                if attempt == _READ_ATTEMPTS - 1:
                    raise ResourceError(
                        f"Reading {file} of {self.name} broke off {_READ_ATTEMPTS} times ({error})."
                    ) from None
        if len(data) != size:
            raise cut_short(self.name, file, len(data), size)
        return data

    def write(self, file: str, data: bytes) -> None:
        """Write a whole object; see `ShardFolder`."""
        self._call("put_object", file, Body=data)

    def remove(self, file: str) -> None:
        """Remove an object; see `ShardFolder`."""
        self._call("delete_object", file)


class FsspecFolder:
    """Shards in any other file system that fsspec opens.

    Args:
        scheme: such as `gs` or `memory`.
        path: the folder in it.

    Raises:
        UsageError: fsspec does not know the scheme.
        MissingExtraError: fsspec, or its package for the scheme, is not installed.
    """

    def __init__(self, scheme: str, path: str) -> None:
        self._scheme = scheme
        self._path = path
        try:
            self._system = import_module("fsspec").filesystem(scheme)
        except ImportError as error:
            raise MissingExtraError(f"{scheme}:// needs another package: {error}.") from None
        except ValueError as error:
            raise UsageError(f"{scheme}://{path} is no address of a known kind: {error}.") from None

    @property
    def name(self) -> str:
        """The address."""
        return f"{self._scheme}://{self._path}"

    def sizes(self) -> dict[str, int]:
        """Return the size of every file; see `ShardFolder`."""
        try:
            entries = self._system.ls(self._path, detail=True)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._unreachable(error) from None
        return {
            each["name"].rstrip("/").rsplit("/", maxsplit=1)[-1]: int(each["size"])
            for each in entries
            if each["type"] == "file"
        }

    def read(self, file: str, begin: int, size: int) -> bytes:
        """Return a range of a file; see `ShardFolder`."""
        try:
            data: bytes = self._system.cat_file(f"{self._path}/{file}", begin, begin + size)
        except FileNotFoundError:
            raise absent(self.name, file) from None
        except OSError as error:
            raise self._unreachable(error) from None
        if len(data) != size:
            raise cut_short(self.name, file, len(data), size)
        return data

    def write(self, file: str, data: bytes) -> None:
        """Write a whole file; see `ShardFolder`."""
        try:
            self._system.makedirs(self._path, exist_ok=True)
            self._system.pipe_file(f"{self._path}/{file}", data)
        except OSError as error:
            raise self._unreachable(error) from None

    def remove(self, file: str) -> None:
        """Remove a file; see `ShardFolder`."""
        self._system.rm_file(f"{self._path}/{file}")

    def _unreachable(self, error: OSError) -> ResourceError:
        return ResourceError(f"{self.name} cannot be used ({error}).")
