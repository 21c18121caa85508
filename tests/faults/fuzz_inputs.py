"""Every kind of input that the program reads: a valid one, which is then damaged, and the way it is read."""

import contextlib
import csv
import functools
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from damage import (
    Content,
    Traps,
    damaged_archive,
    damaged_bytes,
    damaged_json,
    damaged_lines,
    damaged_parquet,
    damaged_safetensors,
    damaged_yaml,
)
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from lora_study.base.errors import ConfigError
from lora_study.cli import main as command_line
from lora_study.config import DataConfig, ModelConfig, to_dict
from lora_study.config_files import experiment_from, load_study, load_sweep
from lora_study.data.sources import load_reviews
from lora_study.data.stream import open_reviews
from lora_study.lora import inject_lora
from lora_study.lora.adapters import load_adapter, save_adapter
from lora_study.lora.peft_format.config import ADAPTER_CONFIG
from lora_study.lora.peft_format.tensors import WEIGHTS
from lora_study.lora.weights import read_weights
from lora_study.model.encoder import read_shape
from lora_study.records.record import ADAPTER
from lora_study.sharing.card import model_card
from lora_study.sharing.trained import completed_record
from lora_study.studies.search import Search
from lora_study.training.checkpoints import read_checkpoint, write_checkpoint

Files = dict[str, Content]  # by path in the folder of the input
Inputs = st.SearchStrategy[Files]

PUBLISHED = Path(__file__).resolve().parents[2] / "results/published/embedded/lora_default/seed-1"
SAID = ("lora-study: error: ", "warning: ", "WARNING ")  # how a line on stderr begins
EXPERIMENT = {"name": "base", "model": {"backbone": "embedded"}, "train": {"precision": "32-true"}}
SWEEP = {
    "name": "sweep",
    "title": "A sweep",
    "experiment": "experiment.yaml",
    "parameters": {"lora.r": [2, 4], "train.learning_rate": {"loguniform": [1e-5, 1e-3]}},
    "search": {"method": "random", "trials": 3, "seed": 0},
    "seeds": [1, 2],
    "overrides": {"train": {"epochs": 1}},
}
STUDY = {
    "name": "study",
    "title": "A study",
    "experiments": ["experiment.yaml"],
    "seeds": [1],
    "overrides": {"mode": "full"},
}
ENCODER = {"model_type": "distilbert", "dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64, "vocab_size": 99}
REVIEWS = {
    "text": ["A wonderful film, and long.", "Dull.", 'They said "no",\nand left.', "Très bien"],
    "label": ["1", "0", "0", "1"],
    "id": ["a", "b", "c", "d"],
    "split": ["train", "test", "train", ""],
}
ACLIMDB = {f"aclImdb/{part}/{label}/0_9.txt": b"A film." for part in ("train", "test") for label in ("neg", "pos")}
TENSORS = {"classifier.weight": torch.ones(2, 4), "classifier.bias": torch.zeros(2), "step": torch.ones(())}


class UnreadableError(Exception):
    """The command line said something else than one line per message."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: What it is.
        share: How many inputs of a thousand are of this kind; few where reading one takes long.
        inputs: Strategy of the input's files.
        read: Reads them as the program does, given their folder.
    """

    name: str
    share: int
    inputs: Callable[[Traps], Inputs]
    read: Callable[[Path], object]


def kinds() -> list[Kind]:
    """All kinds; their shares add up to a thousand."""
    return [
        Kind(
            "experiment", 60, _experiment, lambda folder: command("inspect", "--json", "--config", f"{folder}/a.yaml")
        ),
        Kind("study", 50, _config(STUDY), lambda folder: load_study(folder / "a.yaml")),
        Kind("sweep", 60, _config(SWEEP), _read_sweep),
        Kind("run's record", 60, _record(""), _read_record),
        Kind("study's results", 15, _results, lambda folder: command("claims", "--results-dir", f"{folder}/study")),
        Kind("study's report", 3, _results, lambda folder: command("report", "--results-dir", f"{folder}/study")),
        Kind("run's weights", 80, _weights, lambda folder: read_weights(folder / ADAPTER, _shapes(), "run it again")),
        Kind("checkpoint", 112, _checkpoint, lambda folder: read_checkpoint(folder / "epoch.safetensors")),
        Kind("PEFT adapter", 120, _adapter, lambda folder: load_adapter(_network(), folder)),
        Kind("encoder's config", 40, _encoder, lambda folder: read_shape(folder, ModelConfig(backbone=str(folder)))),
        *(
            Kind(f"reviews: {ending}", 80, functools.partial(inputs, f"reviews.{ending}"), _reads(f"reviews.{ending}"))
            for ending, inputs in (("csv", _csv), ("jsonl", _jsonl), ("parquet", _parquet), ("tar.gz", _archive))
        ),
        Kind("reviews: folder", 20, _folder, _reads("data")),
        *(
            Kind(f"to predict: {ending}", 20, functools.partial(inputs, f"a.{ending}"), _streams(f"a.{ending}"))
            for ending, inputs in (("csv", _csv), ("jsonl", _jsonl), ("txt", _text))
        ),
    ]


def command(*words: str) -> None:
    """Type a command; what it says must be what it says for a user's mistake, or for none.

    Raises:
        ConfigError: it ended with status 2.
        UnreadableError: it ended with another one, or said more than one line per message.
    """
    said, out = io.StringIO(), io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        status = command_line(words)
    lines = said.getvalue().splitlines()
    if status not in (0, 2) or not all(line.startswith(SAID) and line.isprintable() for line in lines):
        raise UnreadableError(f"status {status}, {lines!r:.500}")
    if status == 2:
        raise ConfigError(lines[-1])


def _experiment(traps: Traps) -> Inputs:
    tree = {"extends": "b.yaml", **to_dict(experiment_from(EXPERIMENT))}
    below = json.dumps(EXPERIMENT).encode()
    return damaged_yaml(tree, traps).map(lambda content: {"a.yaml": content, "b.yaml": below})


def _config(tree: Mapping[str, Any]) -> Callable[[Traps], Inputs]:
    experiment = json.dumps(EXPERIMENT).encode()
    return lambda traps: damaged_yaml(tree, traps).map(lambda c: {"a.yaml": c, "experiment.yaml": experiment})


def _read_sweep(folder: Path) -> None:
    sweep, base = load_sweep(folder / "a.yaml")
    if sweep.search.method != "adaptive":
        Search(sweep, base, limit=20).ask()


def _record(place: str) -> Callable[[Traps], Inputs]:
    tree = json.loads((PUBLISHED / "record.json").read_bytes())
    return lambda traps: damaged_json(tree, traps).map(lambda content: {f"{place}record.json": content})


def _read_record(folder: Path) -> None:
    """As export does, but for the model itself."""
    record = completed_record(folder)
    experiment_from(record.config, str(folder / "record.json"))
    str(model_card(record, "adapter"))


def _results(traps: Traps) -> Inputs:
    place = "study/lora_default/seed-1/"
    whole: Files = {f"{place}{name}": (PUBLISHED / name).read_bytes() for name in ("record.json", "curves.csv")}
    curves = (PUBLISHED / "curves.csv").read_text()
    predictions: dict[str, list[Any]] = {"id": ["a", "b"], "label": [0, 1], "probability": [0.1, 0.9]}
    one = st.one_of(
        _record(place)(traps),
        damaged_lines(curves).map(lambda content: {f"{place}curves.csv": content}),
        damaged_parquet(predictions, traps).map(lambda content: {f"{place}predictions.parquet": content}),
    )
    return one.map(lambda files: whole | files)


def _weights(traps: Traps) -> Inputs:
    return damaged_safetensors(save(TENSORS), traps).map(lambda content: {ADAPTER: content})


def _shapes() -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in TENSORS.items()}


def _checkpoint(traps: Traps) -> Inputs:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "epoch.safetensors"
        write_checkpoint(path, TENSORS, {"identity": {"name": "a", "lora.r": 8}, "epoch": 1, "best": {"epoch": 1}})
        content = path.read_bytes()
    return damaged_safetensors(content, traps).map(lambda damaged: {path.name: damaged})


def _network() -> nn.Module:
    return nn.ModuleDict({"attention": nn.ModuleDict({"q_lin": nn.Linear(8, 4)}), "classifier": nn.Linear(4, 2)})


def _adapter(traps: Traps) -> Inputs:
    network = _network()
    inject_lora(network, ["q_lin"], r=2, alpha=1.0, scaling="alpha")
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(network, folder)
        weights, config = ((Path(folder) / name).read_bytes() for name in (WEIGHTS, ADAPTER_CONFIG))
    return st.one_of(
        damaged_safetensors(weights, traps).map(lambda content: {WEIGHTS: content, ADAPTER_CONFIG: config}),
        damaged_json(json.loads(config), traps).map(lambda content: {WEIGHTS: weights, ADAPTER_CONFIG: content}),
    )


def _encoder(traps: Traps) -> Inputs:
    return damaged_json(ENCODER, traps).map(lambda content: {"config.json": content})


def _csv(name: str, traps: Traps) -> Inputs:
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(REVIEWS)
    rows.writerows(zip(*REVIEWS.values(), strict=True))
    return st.one_of(damaged_lines(table.getvalue()), damaged_bytes(table.getvalue().encode(), traps)).map(
        lambda content: {name: content}
    )


def _jsonl(name: str, traps: Traps) -> Inputs:
    rows = [json.dumps(dict(zip(REVIEWS, row, strict=True))) for row in zip(*REVIEWS.values(), strict=True)]
    text = "\n".join(rows)
    row = damaged_json(json.loads(rows[0]), traps).map(
        lambda content: content if isinstance(content, Path) else content.replace(b"\n", b"") + text.encode()
    )
    return st.one_of(row, damaged_lines(text), damaged_bytes(text.encode(), traps)).map(lambda content: {name: content})


def _text(name: str, traps: Traps) -> Inputs:
    text = "\n\n".join(REVIEWS["text"])
    return st.one_of(damaged_lines(text), damaged_bytes(text.encode(), traps)).map(lambda content: {name: content})


def _parquet(name: str, traps: Traps) -> Inputs:
    return damaged_parquet(REVIEWS, traps).map(lambda content: {name: content})


def _archive(name: str, traps: Traps) -> Inputs:
    return damaged_archive(ACLIMDB, traps).map(lambda content: {name: content})


def _folder(traps: Traps) -> Inputs:
    one = st.tuples(st.sampled_from(list(ACLIMDB)), damaged_bytes(b"A film.", traps))
    return one.map(lambda file: {f"data/{name}": content for name, content in (ACLIMDB | dict([file])).items()})


def _reads(name: str) -> Callable[[Path], object]:
    return lambda folder: load_reviews(DataConfig(source=str(folder / name)))


def _streams(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        with open_reviews(str(folder / name)) as reviews:
            for _ in reviews:
                pass

    return read
