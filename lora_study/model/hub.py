"""Files of a model on the Hugging Face hub: from the cache, or downloaded into it.

HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE work as they do for all Hugging Face tools.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from lora_study.base.errors import ConfigError, one_line
from lora_study.config import ModelConfig

HUB_TIMEOUT = 10.0  # seconds


def hub_snapshot(config: ModelConfig, files: Sequence[str]) -> Path:
    """The cache's folder of a hub model, holding at least these files.

    A pinned commit that is in the cache is used without asking the hub; for anything else the hub is asked once, and
    the cache is used if the hub cannot be reached.
    """
    pinned = re.fullmatch(r"[0-9a-f]{40}", config.revision or "") is not None
    folder = cached_snapshot(config, files) if pinned else None
    if folder is not None:
        return folder
    try:
        # One request with a short timeout: without a network the download itself would retry for most of a minute.
        HfApi().model_info(config.backbone, revision=config.revision, timeout=HUB_TIMEOUT)
        return Path(snapshot_download(config.backbone, revision=config.revision, allow_patterns=list(files)))
    except Exception as error:  # which HTTP library the hub's client uses, and so its errors, changes between versions
        folder = cached_snapshot(config, files)
        if folder is not None:
            return folder
        raise ConfigError(
            f"model.backbone: {config.backbone!r} is neither a folder nor in the cache {constants.HF_HUB_CACHE}, and "
            f"cannot be fetched from {constants.ENDPOINT} ({hub_reason(config, error)}); connect (HF_ENDPOINT names a "
            "mirror, HF_HOME a filled cache), set model.backbone to a downloaded folder, or use model.backbone=embedded"
        ) from error


def cached_snapshot(config: ModelConfig, files: Sequence[str]) -> Path | None:
    """The cache's folder of a hub model if it holds these files, else None."""
    try:
        folder = Path(
            snapshot_download(
                config.backbone, revision=config.revision, allow_patterns=list(files), local_files_only=True
            )
        )
    except (OSError, ValueError):  # nothing or too little is cached, or the name is not a hub name
        return None
    return folder if all((folder / name).is_file() for name in files) else None


def hub_reason(config: ModelConfig, error: Exception) -> str:
    """Why the hub did not provide a model, in a few words."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {config.revision!r}"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such public model"
    return f"{type(error).__name__}: {one_line(error)[:200]}"
