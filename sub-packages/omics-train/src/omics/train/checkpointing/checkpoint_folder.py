"""Folders of checkpoints: written whole or not at all, verified when read, the old ones removed.

- `checkpoints/step-00001234/` holds a `state.json`, safetensors and a `MANIFEST.json` with the
  sha256 of each. `checkpoints/best-00001234/` holds the weights of the best validation alone.
- A checkpoint that is damaged is passed over, telling so, for the one before it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.atomic_files import new_folder, remove_path, write_bytes
from omics.data.command_line import say
from omics.data.errors import EXIT_CORRUPT, OmicsError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from torch import Tensor

FOLDER = "checkpoints"
STEP, BEST = "step-", "best-"
FORMAT = "omics-checkpoint"
FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
STATE = "state.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
VALIDATION = "validation.safetensors"
_PARTS = {STATE, MODEL}


class CorruptCheckpointError(OmicsError, ValueError):
    """A checkpoint whose files are not the ones that were written."""

    code = "corrupt-checkpoint"
    exit_code = EXIT_CORRUPT


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files were verified.

    Attributes:
        path: its folder.
        state: content of `state.json`.
    """

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps that were taken."""
        return int(self.state["step"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one file, on the CPU; none where there is no such file.

        Args:
            name: of the file.
        """
        from safetensors.torch import load_file

        path = self.path / name
        return load_file(path) if path.is_file() else {}


def write_checkpoint(
    path: Path, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> Checkpoint:
    """Write a checkpoint as a new folder, or leave nothing.

    Args:
        path: of the folder; one that is there is replaced as a whole.
        state: plain JSON.
        tensors: `{file: {name: tensor}}`, on any device; files without a tensor are left out.

    Raises:
        ResourceError: the disk is full; the checkpoints that are there stay.
    """
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with _told_when_full(path), new_folder(path, overwrite=True) as folder:
        for name, each in tensors.items():
            if each:
                ready = {key: value.detach().contiguous().cpu() for key, value in each.items()}
                save_file(ready, folder / name)
        write_bytes(folder / STATE, (json.dumps(state, allow_nan=False) + "\n").encode())
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in sorted(folder.iterdir())
        }
        manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "files": files}
        write_bytes(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return Checkpoint(path=path, state=dict(state))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the state of a checkpoint after verifying all of its files.

    Args:
        path: of the folder.

    Raises:
        CorruptCheckpointError: naming the first file that is wrong.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        files = {name: (each["bytes"], each["sha256"]) for name, each in manifest["files"].items()}
        found = manifest["format"], manifest["format_version"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(f"{path / MANIFEST} is damaged ({error!r}).") from error
    if found != (FORMAT, FORMAT_VERSION) or not files.keys() >= _PARTS:
        raise CorruptCheckpointError(
            f"{path / MANIFEST} has format {found}; this version reads {FORMAT} {FORMAT_VERSION}."
        )
    for name, expected in files.items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise CorruptCheckpointError(f"{file} is missing from the checkpoint.")
        if (file.stat().st_size, _sha256(file)) != expected:
            raise CorruptCheckpointError(f"{file} is not what the manifest says.")
    return Checkpoint(path=path, state=json.loads((path / STATE).read_bytes()))


def checkpoint_path(run: Path, step: int, *, kind: str = STEP) -> Path:
    """Return where the checkpoint of a step is.

    Args:
        run: the run folder.
        step: optimiser steps that were taken.
        kind: `step-` or `best-`.
    """
    return run / FOLDER / f"{kind}{step:08d}"


def checkpoint_steps(run: Path, *, kind: str = STEP) -> list[int]:
    """Return the steps that have a checkpoint, whole or damaged, ascending.

    Args:
        run: the run folder.
        kind: `step-` or `best-`.
    """
    names = [path.name.removeprefix(kind) for path in (run / FOLDER).glob(f"{kind}*")]
    return sorted(int(name) for name in names if name.isdigit())


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole; None where there is no checkpoint at all.

    Args:
        run: the run folder.

    Raises:
        CorruptCheckpointError: there are checkpoints and none is whole.
    """
    damage = None
    for step in reversed(checkpoint_steps(run)):
        try:
            found = read_checkpoint(checkpoint_path(run, step))
        except CorruptCheckpointError as error:
            say(f"{error} The checkpoint before it is tried.")
            damage = damage or error
            continue
        return found
    if damage is not None:
        raise CorruptCheckpointError(
            f"No checkpoint in {run / FOLDER} is whole. {damage} Start again with overwrite=true."
        )
    return None


def keep_newest(run: Path, number: int, *, best: int | None) -> None:
    """Remove old checkpoints, best weights that nothing points to, and leftovers of killed saves.

    Args:
        run: the run folder.
        number: of the newest checkpoints that stay.
        best: step of the best validation so far.
    """
    steps = checkpoint_steps(run)
    for step in steps[:-number]:
        remove_path(checkpoint_path(run, step))
    wanted = {best, *(_best_of(checkpoint_path(run, step)) for step in steps[-number:])}
    for step in checkpoint_steps(run, kind=BEST):
        if step not in wanted:
            remove_path(checkpoint_path(run, step, kind=BEST))
    for leftover in (run / FOLDER).glob(".*-*.*"):
        if ".tmp" in leftover.name or leftover.suffix == ".old":
            remove_path(leftover)


def forget_later(run: Path, step: int) -> None:
    """Remove checkpoints of later steps, which a run that goes back will write again.

    Args:
        run: the run folder.
        step: from which the run goes on; -1 where it begins anew.
    """
    for kind in (STEP, BEST):
        for each in checkpoint_steps(run, kind=kind):
            if each > step:
                remove_path(checkpoint_path(run, each, kind=kind))


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return in words how tensors differ in name or shape; empty where they do not.

    Args:
        expected: of the model.
        found: of a checkpoint.
    """
    for name in sorted({*expected, *found}):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is unknown"
        if expected[name].shape != found[name].shape:
            return (
                f"{name} has the shape {list(found[name].shape)}, not {list(expected[name].shape)}"
            )
    return ""


def _best_of(path: Path) -> int | None:
    try:
        best = json.loads((path / STATE).read_bytes())["best"]
    except (OSError, ValueError, KeyError):
        return None
    return None if best is None else int(best["step"])


@contextlib.contextmanager
def _told_when_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full: Collection[int] = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        # safetensors says it in words only.
        if error.errno in full or "No space left" in str(error):
            raise _full(path, error) from error
        raise
    except Exception as error:
        if "No space left" in str(error) or "Disk quota" in str(error):
            raise _full(path, error) from error
        raise


def _full(path: Path, error: Exception) -> ResourceError:
    return ResourceError(
        f"The checkpoint {path} cannot be written ({error}). Those that were there are untouched. "
        "Free some space, or lower trainer.checkpoint.keep, and run the same command with "
        "resume=true."
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
