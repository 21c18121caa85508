"""Reading a run back: the model it trained, from its record and the weights in its folder."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from transformers import DistilBertForSequenceClassification, PreTrainedTokenizerFast

from lora_study.base.errors import ConfigError
from lora_study.base.files import exists, user_path
from lora_study.config import ExperimentConfig
from lora_study.config_files import experiment_from
from lora_study.lora.weights import read_weights
from lora_study.model import encoder as backbones
from lora_study.model.modes import HEAD, apply_mode
from lora_study.records.record import ADAPTER, Record, RecordError, read_record


@dataclass(frozen=True)
class TrainedModel:
    """A finished run, ready for use.

    Attributes:
        model: The network in the run's mode (LoRA layers in place) with the trained weights, fp32, in eval mode.
        tokenizer: The encoder's tokenizer, with no truncation or padding set.
        config: What was run.
        record: What came out.
        folder: The run's folder.
    """

    model: DistilBertForSequenceClassification
    tokenizer: PreTrainedTokenizerFast
    config: ExperimentConfig
    record: Record
    folder: Path


def load_run(folder: str | Path) -> TrainedModel:
    """Rebuild the model of a completed run.

    Args:
        folder: The run's folder, results/STUDY/EXPERIMENT/seed-N.

    Raises:
        ConfigError: the folder holds no completed run, its encoder is not on this machine or is not the one that was
            trained, or the run's weights are missing or damaged.
    """
    folder = user_path(folder)
    record = completed_record(folder)
    config = experiment_from(record.config, str(folder / "record.json"))
    path, again = folder / ADAPTER, "run it again with --overwrite"
    if config.mode == "full" and not config.train.keep_weights and not path.exists():
        raise ConfigError(
            f"{folder} has no weights, because its train.keep_weights is false; {again} --train.keep_weights true"
        )
    backbone = config.model.backbone
    if Path(backbone).is_absolute() and not exists(Path(backbone)):
        raise ConfigError(
            f"model.backbone: {folder} was trained from {backbone}, which is not there; put the encoder there, or write"
            f" where it is into config.model.backbone of {folder / 'record.json'}"
        )
    # The commit that was trained on: a branch that the config names may have moved since.
    encoder = dataclasses.replace(config.model, revision=record.encoder.revision or config.model.revision)
    model = backbones.build_model(encoder, head_seed=config.resolved_seeds()["head_init"])
    found = backbones.describe(encoder)
    for key, what in (("sha256", "weights"), ("settings_sha256", "config.json and tokenizer")):
        now, then = found[key], getattr(record.encoder, key)
        if now and then and now != then:
            raise ConfigError(
                f"model.backbone: the {what} of {encoder.backbone!r} have SHA-256 {now}, but {folder} was trained on "
                f"{then}; restore that encoder, or {again}"
            )
    apply_mode(model, config)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {
        name: tensor.shape for name, tensor in model.state_dict().items() if name in trained or name.startswith(HEAD)
    }
    model.load_state_dict(read_weights(path, expected, again), strict=False)
    model.eval()  # type: ignore[no-untyped-call]
    return TrainedModel(model, backbones.build_tokenizer(encoder), config, record, folder)


def completed_experiment(folder: Path) -> ExperimentConfig:
    """What a completed run was run with; errors as of `completed_record`, or its record holds no such config."""
    return experiment_from(completed_record(folder).config, str(folder / "record.json"))


def completed_record(folder: Path) -> Record:
    """The record of a completed run.

    Raises:
        ConfigError: there is no such folder, its run failed or never finished, or its record is damaged.
    """
    path = folder / "record.json"
    if not path.is_file():
        runs = sorted(run.parent for run in (*folder.glob("seed-*/record.json"), *folder.glob("*/seed-*/record.json")))
        if runs:
            raise ConfigError(f"{folder} is not one run; name one of those in it, such as {runs[0]}")
        if folder.is_dir():
            raise ConfigError(f"{folder} has no record.json; its run is not finished, or this is not a run's folder")
        raise ConfigError(f"{folder} is not a folder; name a run's folder, such as results/single/NAME/seed-1")
    try:
        record = read_record(path)
    except RecordError as error:
        raise ConfigError(f"{error}; run it again with --overwrite") from error
    if record.status == "failed":
        raise ConfigError(f"{folder} is a failed run ({record.error}); run it again")
    return record
