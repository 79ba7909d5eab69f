"""Fetches files of a repository of the Hugging Face hub; nothing in them is executed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omics.data.errors import InputDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

HUB_PREFIX = "hf:"


def fetch_snapshot(repo_id: str, patterns: Sequence[str] = ()) -> Path:
    """Return the folder with the files of a repository, fetched unless they are there already.

    Args:
        repo_id: `owner/name`.
        patterns: of the files that are wanted; none for all.

    Raises:
        InputDataError: there is no such repository, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options = {"allow_patterns": list(patterns)} if patterns else {}
    try:
        return Path(snapshot_download(repo_id, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputDataError(
            f"{HUB_PREFIX}{repo_id} could not be fetched from the hub: {error}"
        ) from error
