"""Ways to damage a file, as Hypothesis strategies: from a flipped byte to a pickle under another name.

Every strategy gives the whole content of a file. `Traps` says where a breach would show: in a folder that only code
hidden in the data would make, and at a path that only an escape from the results folder would reach.
"""

import copy
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from hypothesis import strategies as st

Content = bytes | Path  # of a file; a path makes it a link there

SLOT = "SLOT"  # marks where text is put into a tree that no tree can hold
DEEP = 4000  # brackets within brackets


@dataclass(frozen=True)
class Traps:
    """Where something that must not happen would show.

    Attributes:
        canary: A folder that exists only if code in the data was run.
        outside: A path outside any results folder that nothing may write to.
    """

    canary: Path
    outside: Path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        """Unpickled, it makes the canary."""
        return os.mkdir, (str(self.canary),)

    def pickles(self) -> list[bytes]:
        """The pickle itself, and as torch.save wraps it."""
        saved = io.BytesIO()
        torch.save({"weight": self}, saved)
        return [pickle.dumps(self), saved.getvalue()]

    def values(self) -> list[Any]:
        """Values that few fields take, or none."""
        return [
            *(2, 3, 0.5, "query", ["query"], [2, 4], {"uniform": [1, 3]}),
            *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, -0.5, 1e308, [], [None], {}, {"a": 1}, [[[]]]),
            *("", " ", "0", "\0", "a\nb", "\x1b[31m", "\ud800", "\u202e", "x" * 10_000, "/dev/zero", "~root/x", "null"),
            *(f"../../{self.outside.name}", str(self.outside), "../" * 20 + str(self.outside)[1:], "."),
        ]

    def json_texts(self) -> list[str]:
        """What a JSON file may hold but few programs expect."""
        return [
            *("NaN", "-Infinity", "1e999", "9" * 5000, "-0", '"\\ud800"', "[" * DEEP + "]" * DEEP),
            *('{"a":' * DEEP + "0" + "}" * DEEP, '{"a": 1, "a": 2}'),
        ]

    def yaml_texts(self) -> list[str]:
        """The same for YAML; tags that would run code, and aliases that repeat what they stand for."""
        code = f"os.mkdir [{json.dumps(str(self.canary))}]"
        bomb = ", ".join(f"&l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9))
        return [
            *(
                ".nan",
                "-.inf",
                "1e999",
                "9" * 5000,
                "0o777",
                "2020-13-45",
                "2020-01-01",
                "1:60",
                "=",
                "~",
                "!!binary x",
            ),
            *("!!set {a, b}", "!!timestamp x", "{[a]: b}", "{? {a: b} : c}", "{<<: 3}", "&a [*a]", "&b {c: *b}", "*x"),
            *(f"!!python/object/apply:{code}", f"!!python/object/new:{code}", "!!python/name:os.system"),
            *(f"[&l0 [x], {bomb}]", "[" * 500 + "]" * 500, "{a: " * 500 + "}" * 500, "|\n  a", '"\\ud800"', '"\\0"'),
        ]


def damaged_bytes(content: bytes, traps: Traps) -> st.SearchStrategy[Content]:
    """A file with a few bytes changed, cut, left out or repeated; or another file in its place."""
    others: list[Content] = [b"", b"\0" * 100, b"\xff\xfe" + "ab".encode("utf-16-le"), gzip.compress(content)]
    others += [*traps.pickles(), Path("/dev/zero"), Path("nowhere"), Path(), traps.outside.parent]
    return st.one_of(_byte_changes(content), _byte_changes(content), st.sampled_from(others))


@st.composite
def _byte_changes(draw: st.DrawFn, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        end = min(len(changed), place + draw(st.sampled_from((1, 2, 8, 100))))
        kind = draw(st.sampled_from(("flip", "set", "cut", "leave out", "repeat", "insert")))
        if kind == "flip" and changed:
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and changed:
            changed[place:end] = bytes([draw(st.sampled_from((0, 10, 34, 44, 127, 128, 255)))]) * (end - place)
        elif kind == "cut":
            del changed[place:]
        elif kind == "leave out":
            del changed[place:end]
        elif kind == "repeat":
            changed[place:place] = changed[place:end]
        else:
            changed[place:place] = draw(st.binary(max_size=20))
    return bytes(changed)


@st.composite
def damaged_lines(draw: st.DrawFn, text: str) -> bytes:
    """A text with a line left out, repeated, swapped with another, moved right or joined to the next."""
    lines = text.splitlines(keepends=True)
    first, second = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    kind = draw(st.sampled_from(("leave out", "repeat", "swap", "indent", "join")))
    if kind == "leave out":
        del lines[first]
    elif kind == "repeat":
        lines.insert(second, lines[first])
    elif kind == "swap":
        lines[first], lines[second] = lines[second], lines[first]
    elif kind == "indent":
        lines[first] = f"  {lines[first]}"
    else:
        lines[first] = lines[first].rstrip("\n")
    return "".join(lines).encode()


@st.composite
def damaged_tree(draw: st.DrawFn, tree: Any, traps: Traps) -> Any:
    """Nested mappings and lists with one to three values replaced, left out, renamed, wrapped or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.sampled_from((1, 1, 1, 0, 2, 3)))):
        places = [place for place in _places(tree) if place]
        if not places:
            return tree
        *above, key = draw(st.sampled_from(places))
        holder = tree
        for step in above:
            holder = holder[step]
        value = draw(st.sampled_from([SLOT, *traps.values()]))
        kind = draw(st.sampled_from(("replace", "replace", "replace", "leave out", "wrap", "rename", "add")))
        if kind == "leave out":
            del holder[key]
        elif kind == "wrap":
            holder[key] = draw(
                st.sampled_from(([holder[key]], {"a": holder[key]}, [holder[key]] * 2, str(holder[key])))
            )
        elif kind in ("rename", "add") and isinstance(holder, dict):
            name = str(draw(st.sampled_from(("a b", "\n", "name", "extends", "__class__", f"{key}x", "", "\x1b[31m"))))
            holder[name] = holder.pop(key) if kind == "rename" else value
        else:
            holder[key] = copy.deepcopy(value)
    return tree


@st.composite
def damaged_json(draw: st.DrawFn, tree: Any, traps: Traps) -> Content:
    """A JSON file of a damaged tree, at times with its lines or bytes damaged too."""
    text = json.dumps(draw(damaged_tree(tree, traps)), indent=1)
    text = text.replace(f'"{SLOT}"', draw(st.sampled_from(traps.json_texts())))
    return draw(_rarely_more(text, traps))


@st.composite
def damaged_yaml(draw: st.DrawFn, tree: Any, traps: Traps) -> Content:
    """A YAML file of a damaged tree, at times with its lines or bytes damaged too."""
    text = yaml.safe_dump(draw(damaged_tree(tree, traps)), sort_keys=False)
    text = text.replace(SLOT, draw(st.sampled_from(traps.yaml_texts())))
    return draw(_rarely_more(text, traps))


@st.composite
def damaged_safetensors(draw: st.DrawFn, content: bytes, traps: Traps) -> Content:
    """A safetensors file: its header, which is JSON, damaged as such, or any of its bytes."""
    length = struct.unpack("<Q", content[:8])[0]
    if draw(st.booleans()):
        return draw(damaged_bytes(content, traps))
    tree = json.loads(content[8 : 8 + length])
    tensor = draw(st.sampled_from([name for name in tree if name != "__metadata__"]))
    kind = draw(st.sampled_from(("any", "type", "shape", "offsets")))
    if kind == "type":
        tree[tensor]["dtype"] = draw(st.sampled_from(("F16", "BF16", "F64", "I32", "U32", "BOOL", "F8_E4M3", "C64")))
    elif kind == "shape":
        tree[tensor]["shape"] = draw(st.lists(st.sampled_from((0, 1, 2, 4, 8, 2**40, 2**63)), max_size=4))
    elif kind == "offsets":
        tree[tensor]["data_offsets"] = draw(st.lists(st.sampled_from((0, 4, 64, 2**40, -1)), min_size=2, max_size=2))
    header = json.dumps(tree).encode() if kind != "any" else draw(damaged_json(tree, traps))
    if isinstance(header, Path):
        return header
    size = draw(st.sampled_from((len(header), len(header), len(header), 2**40, 0, 2**64 - 1)))
    return struct.pack("<Q", size) + header + content[8 + length :]


@st.composite
def damaged_archive(draw: st.DrawFn, files: Mapping[str, bytes], traps: Traps) -> Content:
    """A .tar.gz with members that lead out of it, link, are devices, or claim a size that is not theirs."""
    names = [*files, str(traps.outside), f"../../{traps.outside.name}", "aclImdb/train/pos/../../../x.txt", "a\nb", ""]
    kinds = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    blocks = b""
    more = st.tuples(st.sampled_from(names), st.binary(max_size=50))
    members = [*files.items(), *draw(st.lists(more, max_size=3))]
    odd = draw(st.integers(0, len(members) - 1))
    for number, (name, content) in enumerate(members):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        if number == odd:
            info.type = draw(st.sampled_from((*kinds, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE)))
            info.linkname = draw(st.sampled_from(("", "/etc/passwd", "../../etc/passwd", str(traps.outside), name)))
            info.size = draw(st.sampled_from((len(content), 0, 10_000, 2**33 - 1, 2**40)))
            if draw(st.booleans()):
                key = draw(st.sampled_from(("path", "size", "linkpath", "GNU.sparse.size", "GNU.sparse.map")))
                info.pax_headers = {key: draw(st.sampled_from(("-1", "9" * 30, "0,1", "x", str(traps.outside))))}
        header = bytearray(info.tobuf(tarfile.PAX_FORMAT if info.pax_headers else tarfile.GNU_FORMAT))
        if info.type == tarfile.GNUTYPE_SPARSE:  # one piece of data, in a file that says it is a terabyte long
            header[386:410] = b"%011o\0%011o\0" % (0, len(content))
            header[483:495] = b"%011o\0" % (2**33 - 1)
            header = _with_checksum(header)
        blocks += bytes(header) + content + b"\0" * (-len(content) % tarfile.BLOCKSIZE)
    blocks += b"\0" * draw(st.sampled_from((1024, 512, 0)))
    packed = gzip.compress(blocks, compresslevel=1, mtime=0)
    return packed if draw(st.integers(0, 2)) else draw(damaged_bytes(packed, traps))


def _with_checksum(header: bytearray) -> bytearray:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return header


@st.composite
def damaged_parquet(draw: st.DrawFn, columns: Mapping[str, Sequence[Any]], traps: Traps) -> Content:
    """A Parquet file with columns of types that no review has, or with damaged bytes."""
    rows = len(next(iter(columns.values())))
    odd: list[pa.Array] = [
        pa.array(range(rows), pa.timestamp("ns")),
        pa.array([2**62] * rows, pa.timestamp("ms")),
        pa.array([2**62] * rows, pa.duration("s")),
        pa.array([2**31 - 1] * rows, pa.date32()),
        pa.array([b"\xff"] * rows, pa.binary()),
        pa.array([[None]] * rows, pa.list_(pa.int8())),
        pa.array([{"a": "b"}] * rows),
        pa.array([None] * rows, pa.null()),
        pa.array(["x"] * rows).dictionary_encode(),
        pa.array([float("nan")] * rows),
        pa.array([True] * rows),
        pa.array([10**30] * rows, pa.decimal256(40, 3)),
    ]
    arrays = [pa.array(column) for column in columns.values()]
    names = list(columns)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(names) - 1))
        if draw(st.booleans()):
            arrays[place] = draw(st.sampled_from(odd))
        else:
            names[place] = draw(st.sampled_from(("", "\n", "label", "text", "x")))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, names), buffer)
    content = buffer.getvalue()
    return content if draw(st.integers(0, 2)) == 0 else draw(damaged_bytes(content, traps))


def _rarely_more(text: str, traps: Traps) -> st.SearchStrategy[Content]:
    content = text.encode("utf-8", "surrogatepass")
    plain: st.SearchStrategy[Content] = st.just(content)
    return st.one_of(
        plain, plain, plain, damaged_lines(text) if text.isascii() else plain, damaged_bytes(content, traps)
    )


def _places(tree: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a tree."""
    below = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [above, *(place for key, value in below for place in _places(value, (*above, key)))]
