"""A finished run is the answer to one question: the same config, on the same reviews, from the same encoder."""

import dataclasses
import os
import re
from pathlib import Path

from lora_study.base.errors import ConfigError
from lora_study.base.files import user_path
from lora_study.config import NAMED_SOURCES, DataConfig, ExperimentConfig
from lora_study.data.cache import fingerprint
from lora_study.data.datamodule import load_splits, part_fingerprints
from lora_study.model import encoder as backbones
from lora_study.records.record import Record
from lora_study.records.run_folder import OTHERWISE, completed_run

# The data settings that decide how the reviews are fed to the model, not which reviews they are.
_FEEDING = (
    *("max_length", "batch_size", "eval_batch_size", "bucket_window", "padding", "pad_to_multiple_of", "drop_last"),
    "cache_dir",
)


def finished_run(folder: Path, config: ExperimentConfig) -> Record | None:
    """The record of the completed run of this very question in a run folder, if there is one.

    What an older record does not say is not compared.

    Raises:
        ConfigError: the folder holds a completed run of another question, or a damaged record; or the reviews or the
            encoder, which have to be compared, cannot be read.
    """
    record = completed_run(folder, config)
    if record is None:
        return None
    now = backbones.describe(config.model)
    for key in ("sha256", "settings_sha256"):
        then = getattr(record.encoder, key)
        if then and now[key] and then != now[key]:
            raise _changed("model.backbone", config.model.backbone, folder)
    if (known := record.data.get("fingerprint")) and not _is_pinned(config.data):
        question = dataclasses.replace(config.data, **{name: getattr(DataConfig(), name) for name in _FEEDING})
        if known != _fingerprint(question, _stamp(config.data.source)):
            raise _changed("data.source", config.data.source, folder)
    return record


def _changed(field: str, value: str, folder: Path) -> ConfigError:
    return ConfigError(f"{field}: {value} has changed since {folder} was run on it; restore it, {OTHERWISE}")


def _is_pinned(config: DataConfig) -> bool:
    """Whether the same config always means the same reviews: a checksum or a commit says so."""
    commit = config.revision is not None and re.fullmatch(r"[0-9a-f]{40}", config.revision)
    return config.source == "embedded" or (config.source == "hub" and bool(commit))


_FINGERPRINTS: dict[tuple[str, object], str] = {}


def _fingerprint(config: DataConfig, stamp: object) -> str:
    """The fingerprint of the reviews of a config, as a record has it; read once for the many runs of a study."""
    key = repr(config), stamp
    if key not in _FINGERPRINTS:
        _FINGERPRINTS[key] = fingerprint(part_fingerprints(load_splits(config)).values())
    return _FINGERPRINTS[key]


def _stamp(source: str) -> object:
    """What shows, without reading them, whether the files of a source may have changed."""
    if source in NAMED_SOURCES:
        return None
    path = user_path(source).resolve()
    files = [path] if path.is_file() else (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    found = ((file, file.stat()) for file in files if file.is_file())  # a link may lead nowhere
    return hash(frozenset((str(file), of.st_mtime_ns, of.st_size, of.st_ino) for file, of in found))
