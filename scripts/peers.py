"""The benchmark's peer: the same fine-tuning with Hugging Face's PEFT and Trainer, as their users write it."""

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from lora_study.backbones import build_model, build_tokenizer
from lora_study.config import Mode, ModelConfig

R, ALPHA = 8, 16  # the article's, whose update is alpha (x A B): in PEFT's terms lora_alpha = alpha * r


class Stopwatch(TrainerCallback):
    """Times the optimizer steps after the warm-up steps.

    Args:
        warmup: Steps that are not timed.
    """

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.started = self.stopped = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Read the clock when the last warm-up step and when the last step has been computed."""
        if state.global_step in (self.warmup, state.max_steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # a GPU computes behind Python's back
            self.started, self.stopped = self.stopped, time.perf_counter()


def peft_trainer_examples_per_second(
    model: ModelConfig,
    mode: Mode,
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    max_length: int,
    steps: int,
    warmup: int,
    precision: str,
    batch_size: int = 12,
    learning_rate: float = 5e-5,
    seed: int = 1,
) -> float:
    """Training speed of Trainer, with PEFT's LoRA for mode "lora", on the study's encoder and the given reviews.

    The same parameters are trained as in the study: in mode "lora" query and value at rank 8, under a frozen head.
    Everything else is Trainer's default, or what its tutorials use: AdamW, freely shuffled batches, each padded
    to its longest review.

    Args:
        model: The encoder, and its dropout.
        mode: "lora", "last_two_layers" or "full".
        texts: Reviews; they are gone through as often as the steps need.
        labels: Their classes.
        max_length: Tokens a review is cut to.
        steps: Timed optimizer steps.
        warmup: Steps before them, 1 or more.
        precision: "32-true", "bf16-mixed" or "16-mixed", as in the study's configs.
        batch_size: Reviews per step; a last, smaller batch is left out, so that every step trains as many.
        learning_rate: Learning rate; it does not change the speed.
        seed: Seed of head, updates, order and dropout.

    Returns:
        Reviews per second over the timed steps, batching and host work included, tokenisation and setup not.
    """
    if steps < 1 or warmup < 1:
        raise ValueError(f"steps={steps}, warmup={warmup}: both must be 1 or more")
    tokenizer = build_tokenizer(model)
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    stopwatch = Stopwatch(warmup)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=trainable(model, mode, seed),
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=batch_size,
                dataloader_drop_last=True,
                use_cpu=not torch.cuda.is_available(),
                dataloader_pin_memory=torch.cuda.is_available(),
                max_steps=warmup + steps,
                learning_rate=learning_rate,
                bf16=precision == "bf16-mixed",
                fp16=precision == "16-mixed",
                seed=seed,
                eval_strategy="no",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({**encoded, "labels": list(labels)}),
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[stopwatch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return steps * batch_size / (stopwatch.stopped - stopwatch.started)


def trainable(model: ModelConfig, mode: Mode, seed: int) -> nn.Module:
    """The classifier with the mode's parameters trainable, by PEFT in mode "lora"."""
    classifier = build_model(model, head_seed=seed)
    if mode == "lora":
        torch.manual_seed(seed)
        # Without a task type PEFT trains its own matrices alone; SEQ_CLS would train the head too.
        return get_peft_model(classifier, LoraConfig(r=R, lora_alpha=ALPHA * R, target_modules=["q_lin", "v_lin"]))
    if mode == "last_two_layers":
        classifier.distilbert.requires_grad_(False)
    return classifier
