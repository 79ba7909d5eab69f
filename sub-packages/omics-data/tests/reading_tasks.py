"""What the child processes of test_guarded_reading do with a file."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from omics.data.errors import CorruptStoreError, InputDataError


def describe(path: str, *, word: str = "") -> dict[str, Any]:
    return {"pid": os.getpid(), "text": Path(path).read_text(), "word": word}


def die(path: str, *, number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


def loop(path: str) -> None:
    while True:
        pass


def wait(path: str) -> None:
    signal.pause()


def leave(path: str) -> None:
    os._exit(3)


def fill_memory(path: str, *, num_bytes: int) -> dict[str, Any]:
    return {"length": len(bytearray(num_bytes))}


def refuse(path: str) -> None:
    raise InputDataError(f"{path} is not wanted.")


def find_damage(path: str) -> None:
    raise CorruptStoreError("a chunk is wrong")


def stumble(path: str) -> None:
    raise TypeError("a fault of ours")
