"""Reviews from Stanford's own distribution of IMDb: the folder aclImdb/ or the archive aclImdb_v1.tar.gz.

Both hold one file per review, ``aclImdb/{train,test}/{neg,pos}/ID_RATING.txt``, and give the same reviews in the
same order. Everything else in them is skipped, including the unlabelled ``train/unsup``.
Source: Maas et al., ACL 2011, https://ai.stanford.edu/~amaas/data/sentiment/.
"""

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from lora_study.base.errors import ConfigError, one_line
from lora_study.data.lines import decode
from lora_study.data.tables import Table, in_memory

REVIEW = re.compile(r"(train|test)/(neg|pos)/([0-9]+)_([0-9]+)\.txt")
CHUNK = 1 << 20  # bytes
LARGEST = 100 * 2**20  # bytes of a member: twice what Stanford's largest has


def read_folder(path: Path) -> Table:
    """The reviews of the folder aclImdb/, or of a folder that holds it.

    Raises:
        ConfigError: there is no review in it, or one is not UTF-8.
    """
    root = path / "aclImdb" if (path / "aclImdb").is_dir() else path
    files = (file for split in ("train", "test") for file in (root / split).glob("*/*.txt"))
    named = ((file.relative_to(root).as_posix(), file) for file in files)
    # Only regular files: reading a link to a device or a pipe might never end.
    reviews = ((name, file.read_bytes()) for name, file in named if REVIEW.fullmatch(name) and file.is_file())
    return to_table(reviews, path)


def read_archive(path: Path) -> Table:
    """The reviews of the archive aclImdb_v1.tar.gz, read from its stream: nothing is extracted to disk.

    Only regular members with the name of a review are read, so links, absolute names and names with '..' are never
    followed.

    Raises:
        ConfigError: the archive is truncated or corrupt, there is no review in it, or one is not UTF-8.
    """
    files: dict[str, bytes] = {}
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    # A few bytes can claim any size, which would take hours to read, or to skip.
                    if max(member.size, archive.offset - member.offset) > LARGEST:
                        raise tarfile.ReadError(f"{member.name} claims to have more than {LARGEST:,} bytes")
                    name = member.name.removeprefix("./").removeprefix("aclImdb/")
                    if member.isreg() and REVIEW.fullmatch(name):
                        content = archive.extractfile(member)
                        assert content is not None  # as for every regular member
                        files[name] = content.read()
            # tarfile takes a stream that stops between two members for a complete one. gzip knows better once it
            # is read to its end, where the length and checksum stand.
            while stream.read(CHUNK):
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:  # ValueError: a header's number
        raise ConfigError(f"{path} is not a complete .tar.gz archive ({one_line(error)}); download it again") from error
    return to_table(files.items(), path)


def to_table(files: Iterable[tuple[str, bytes]], origin: Path) -> Table:
    """A table of review files, given as name below aclImdb/ and content, sorted by split, label and number."""
    reviews = []
    for name, content in files:
        match = REVIEW.fullmatch(name)
        assert match is not None  # callers pass nothing else
        split, label, number, rating = match.groups()
        text = decode(content, f"{origin}: {name}")
        reviews.append((split, label, int(number), int(rating), name.removesuffix(".txt"), text))
    if not reviews:
        raise ConfigError(f"{origin} holds no review such as aclImdb/train/pos/0_9.txt; give the folder aclImdb/")
    splits, labels, _, _, ids, texts = (list(column) for column in zip(*sorted(reviews), strict=True))
    return in_memory(str(origin), {"text": texts, "label": labels, "id": ids, "split": splits})
