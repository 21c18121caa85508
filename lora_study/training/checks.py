"""What LoRA promises, checked on the run: it starts at the base model, leaves W alone and merges without loss."""

from typing import Any

import torch
from torch import Tensor
from transformers import DistilBertForSequenceClassification

from lora_study.config import ExperimentConfig
from lora_study.lora import merge_lora
from lora_study.model.confidence import confidence_cap
from lora_study.model.encoder import build_model
from lora_study.model.modes import apply_mode
from lora_study.training.callbacks import trainable
from lora_study.training.stages import Built, Reviews

REVIEWS = 8  # the longest of validation; more would show the same
NOT_CHECKED: dict[str, float | None] = dict.fromkeys(
    ("start_difference", "changed_tensors", "merge_difference", "least_probability", "most_probability")
)


def check_lora(config: ExperimentConfig, reviews: Reviews, trained: Built) -> dict[str, float | None]:
    """Measure three promises of LoRA, and one limit of a frozen head, on a trained model, which is left as it is.

    The base model is read once more and computes in fp32 on the CPU, layer by layer as transformers does, so that the
    numbers are those of the mathematics, not of a run's precision or levers.

    Args:
        config: An experiment of mode "lora".
        reviews: The run's reviews.
        trained: Its trained model, whole on this device.

    Returns:
        start_difference: The largest difference of a logit between the base model and the adapted one before training.
        changed_tensors: How many of the tensors that were not to be trained differ from the base model's.
        merge_difference: The largest difference of a logit between the trained model and the same model merged.
        least_probability, most_probability: What no review's probability of class 1 can get beyond
            (see `model.confidence`); None where the head is trained.
    """
    batch = _first_reviews(reviews)
    model = build_model(config.model, head_seed=config.resolved_seeds()["head_init"])
    base = _logits(model, batch)
    apply_mode(model, config)
    start = _logits(model, batch)
    learned = {name: value.detach().cpu() for name, value in trainable(trained.model)}
    frozen = {name: value for name, value in model.state_dict().items() if name not in learned}
    now = trained.model.state_dict()
    changed = sum(not torch.equal(value.to(now[name].dtype), now[name].cpu()) for name, value in frozen.items())
    model.load_state_dict(learned, strict=False)
    adapted = _logits(model, batch)
    cap = confidence_cap(model)
    merge_lora(model)
    return {
        "start_difference": _largest(start - base),
        "changed_tensors": changed,
        "merge_difference": _largest(_logits(model, batch) - adapted),
        "least_probability": cap.probabilities[0] if cap else None,
        "most_probability": cap.probabilities[1] if cap else None,
    }


def _first_reviews(reviews: Reviews) -> dict[str, Tensor]:
    batch: dict[str, Any] = next(iter(reviews.batches.val_dataloader()))
    return {name: batch[name][:REVIEWS] for name in ("input_ids", "attention_mask")}


def _logits(model: DistilBertForSequenceClassification, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(**batch).logits
    return logits


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()
