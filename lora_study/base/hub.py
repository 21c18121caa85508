"""Files of a repository on the Hugging Face hub: from the cache, or downloaded into it.

HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE work as they do for all Hugging Face tools.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from lora_study.base.errors import one_line

HUB_TIMEOUT = 10.0  # seconds
Kind = Literal["model", "dataset"]


class HubError(Exception):
    """A repository's files are not to be had; the message can follow 'is not'."""


def hub_snapshot(kind: Kind, name: str, revision: str | None, files: Sequence[str]) -> Path:
    """The cache's folder of a repository of the hub, with those of these files that the repository has.

    A pinned commit that is in the cache is used without asking the hub; for anything else the hub is asked once, and
    the cache is used if the hub cannot be reached.

    Raises:
        HubError: they are neither in the cache nor to be fetched.
    """
    pinned = re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None
    folder = cached_snapshot(kind, name, revision, files) if pinned else None
    if folder is not None:
        return folder
    try:
        # One request with a short timeout: without a network the download itself would retry for most of a minute.
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=HUB_TIMEOUT)
        return Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # which HTTP library the hub's client uses, and so its errors, changes between versions
        folder = cached_snapshot(kind, name, revision, files)
        if folder is not None:
            return folder
        raise HubError(
            f"in the cache {constants.HF_HUB_CACHE}, and cannot be fetched from {constants.ENDPOINT}"
            f" ({_reason(kind, revision, error)}); connect (HF_ENDPOINT names a mirror, HF_HOME a filled cache)"
        ) from error


def cached_snapshot(kind: Kind, name: str, revision: str | None, files: Sequence[str]) -> Path | None:
    """The cache's folder of a repository of the hub if it holds all these files, else None."""
    wanted = list(files)
    try:
        folder = Path(
            snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=wanted, local_files_only=True)
        )
    except (OSError, ValueError):  # nothing or too little is cached, or the name is not a hub name
        return None
    return folder if all((folder / file).is_file() for file in files) else None


def _reason(kind: Kind, revision: str | None, error: Exception) -> str:
    """Why the hub did not provide a repository, in a few words."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such public {kind}"
    return f"{type(error).__name__}: {one_line(error)[:200]}"
