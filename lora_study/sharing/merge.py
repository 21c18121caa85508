"""A run's model without this package: a plain Hugging Face folder, or ONNX."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save
from transformers import DistilBertForSequenceClassification

from lora_study.base.errors import ConfigError, check, one_line
from lora_study.base.files import atomic_folder, user_path
from lora_study.lora import merge_lora
from lora_study.model.encoder import WEIGHTS
from lora_study.sharing.card import write_card
from lora_study.sharing.predict import LABELS, check_exact
from lora_study.sharing.trained import TrainedModel

Format = Literal["hf", "onnx"]

ONNX_PACKAGES = ("onnx", "onnxscript")


def write_merged(
    trained: TrainedModel, output: Path | str, format: Format = "hf", overwrite: bool = False
) -> list[Path]:
    """Merge LoRA into the weights, in fp32, and write the model with its tokenizer: all of it or nothing.

    The model is merged in place, after checking that the folder may be written. Its labels are called negative and
    positive, and the tokenizer's model_max_length is the run's data.max_length, so that ``truncation=True`` cuts a text
    where training cut it.

    Args:
        trained: The run, in any mode; in fp32, as `load_run` gives it.
        output: Folder to write.
        format: "hf" is what `from_pretrained` and `pipeline` read: config.json, model.safetensors, the tokenizer and a
            model card. "onnx" has model.onnx instead of the weights: from input_ids and attention_mask, both
            int64 (batch, sequence), to logits (batch, 2); only the number of positions limits the sequence.
        overwrite: Replace a folder that is not empty.

    Returns:
        The files written.

    Raises:
        ConfigError: the model has been rounded, the folder is not empty, or is a run's, or the packages for ONNX are
            missing, or there is no such format.
        OSError: the folder cannot be written.
    """
    check(format in get_args(Format), "format", format, f"use {', '.join(get_args(Format))}")
    check_exact(trained.model)
    if format == "onnx":
        check_onnx()
        prepared = "forward" in vars(trained.model.distilbert)
        check(not prepared, "trained", "a prepared model", "ONNX cannot hold what makes it fast; load the run again")
    output = user_path(output)
    # A run's folder holds only files, so overwriting would replace it like any folder written here before.
    run = output.resolve() == trained.folder.resolve() or (output / "record.json").exists()
    check(not run, "--output", str(output), "it is a run's folder; name another")
    model, tokenizer = trained.model, trained.tokenizer
    try:
        with atomic_folder(output, overwrite) as folder:
            _make_plain(trained)
            model.config.save_pretrained(folder)
            try:
                tokenizer.save_pretrained(folder)
            except Exception as error:  # of a full disk, tokenizers raises no type of its own
                raise OSError(f"{output} cannot be written: {one_line(error)}") from error
            if format == "onnx":
                export_onnx(model, folder / "model.onnx")
            else:
                weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
                # Not save_pretrained, which makes the file unreadable to other users.
                (folder / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
            write_card(trained.record, "onnx" if format == "onnx" else "model", folder)
    except FileExistsError as error:
        raise ConfigError(f"--output: {error}") from error
    return sorted(output.iterdir())


def _make_plain(trained: TrainedModel) -> None:
    """Merge a run's model, and set its labels and longest text where other tools look for them; in place."""
    model, tokenizer = trained.model, trained.tokenizer
    merge_lora(model)
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: number for number, label in enumerate(LABELS)}
    model.config.architectures = [type(model).__name__]
    length = tokenizer.model_max_length = trained.config.data.max_length
    # For tools that read tokenizer.json without transformers.
    tokenizer.backend_tokenizer.enable_truncation(length, direction=tokenizer.truncation_side)
    tokenizer.init_kwargs.pop("max_length", None)  # from the embedded encoder's own training


def check_onnx() -> None:
    """Refuse to export if a package it needs is missing.

    Raises:
        ConfigError: one is.
    """
    for package in ONNX_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"--format: 'onnx' needs the package {package}; pip install 'lora-study[onnx]'")


def export_onnx(model: DistilBertForSequenceClassification, path: Path) -> None:
    """Write a classifier in eval mode as one ONNX file for any batch size, and any length that has positions."""
    # The example fixes only the types: two reviews, one of them padded. Sizes of 1 would be taken for constants.
    example = {
        "input_ids": torch.ones(2, 8, dtype=torch.int64),
        "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3]),
    }
    axes = {0: "batch", 1: "sequence"}
    with _quiet():
        program = torch.onnx.export(
            model,
            kwargs=example,
            dynamo=True,
            dynamic_shapes=dict.fromkeys(example, axes),
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None  # as it is only where a file is named
        # ONNX has no way to refuse a text, but a runtime names the node that fails: for too long a one, this.
        adds_positions = next(node for node in program.model.graph if node.op_type == "Add")
        longest = model.config.max_position_embeddings
        adds_positions.name = f"a text has more than {longest} tokens; let the tokenizer cut it, with truncation=True"
        program.save(path, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes on optional packages and on shared names of axes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
