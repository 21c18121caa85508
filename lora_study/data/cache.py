"""Arrays kept on disk under a fingerprint of what they were made from."""

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lora_study.base.files import atomic

logger = logging.getLogger(__name__)

PATIENCE = 600.0  # seconds to wait for another process that is making the same entry

Arrays = dict[str, np.ndarray]


def cached(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of a cache entry, which is made if it is missing or damaged.

    If several processes want the same entry, one makes it and the others wait, at most ten minutes. A folder that
    cannot be used is logged as a warning, and costs only time.
    """
    arrays = read_cached(path)
    if arrays is not None:
        return arrays
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=PATIENCE):
            arrays = read_cached(path)  # another process may have made it while this one waited
            if arrays is None:
                arrays = make()
                with atomic(path) as temporary:
                    save_file({**arrays, "digest": digest(arrays)}, temporary)
    except (OSError, NotImplementedError, SafetensorError) as error:
        logger.warning("%s are not cached in %s: %s", path.parent.name.replace("_", " "), path.parent, error)
    return make() if arrays is None else arrays


def read_cached(path: Path) -> Arrays | None:
    """The arrays of a cache entry, or None if it is missing or is not what was written."""
    try:
        arrays = load_file(path)
        written = arrays.pop("digest")
        return arrays if np.array_equal(written, digest(arrays)) else None
    except (OSError, SafetensorError, KeyError):
        return None


def digest(arrays: Arrays) -> np.ndarray:
    """SHA-256 of named arrays; uint8, (32,)."""
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        hasher.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        hasher.update(np.ascontiguousarray(arrays[name]).data)
    return np.frombuffer(hasher.digest(), dtype=np.uint8)


def fingerprint(texts: Iterable[str]) -> str:
    """SHA-256, in hexadecimal, of a sequence of texts; the boundaries between texts count."""
    hasher = hashlib.sha256()
    for text in texts:
        data = text.encode()
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.hexdigest()
