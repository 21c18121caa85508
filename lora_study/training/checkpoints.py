"""The checkpoint of a run: what it needs to go on after it was killed, written at the end of each epoch.

One safetensors file holds what is trained, the best epoch's copy of it and the optimizer's state, never the frozen
weights; its metadata holds the rest as JSON. Random states are not in it, since every epoch begins from a seed of its
own (see `ReviewClassifier`), nor the order of the reviews, which follows from seed and epoch.
"""

import json
import logging
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lora_study.base.errors import ConfigError, one_line
from lora_study.base.files import atomic
from lora_study.training.callbacks import BestEpoch, Curves, TrainingPeak, trainable
from lora_study.training.devices import spread_like, whole

logger = logging.getLogger(__name__)

# What torch's Adam and AdamW keep per parameter: two tensors of its shape, and a number, the step.
MOMENTS = ("exp_avg", "exp_avg_sq")
CURVES = ("rows", "train_seconds", "cpu_seconds")
VERSION = 2  # of what a checkpoint holds


class CheckpointError(ValueError):
    """A checkpoint that a run cannot go on from; the message says why."""


class Checkpoints(Callback):
    """Writes a run's checkpoint at each epoch's end, and resumes a run from it.

    Args:
        path: The checkpoint's file, in a folder of its own.
        identity: What makes it a checkpoint of this run and no other, by name; plain JSON.
        best: The run's best epoch, part of the checkpoint.
        curves: The run's learning curves, part of the checkpoint.
        peak: The run's peak memory, part of the checkpoint.
        clock: `time.perf_counter` when the run started.

    Attributes:
        epoch: The epoch after which the run was resumed; 0 if it began at the start.
        resumed_epochs: All epochs after which the run was ever resumed.
        seconds: What the earlier pieces of the run took, up to their checkpoints: fit and total.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        best: BestEpoch,
        curves: Curves,
        peak: TrainingPeak,
        clock: float,
    ) -> None:
        self.path = path
        self.identity = {**identity, "version of checkpoints": VERSION}
        self.best = best
        self.curves = curves
        self.peak = peak
        self.epoch = 0
        self.resumed_epochs: list[int] = []
        self.seconds = {"fit": 0.0, "total": 0.0}
        self._starts = {"total": clock}
        self._optimizer: dict[str, Tensor] = {}

    def resume(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Resume the run where its checkpoint left it; call it before `Trainer.fit`.

        Without a checkpoint the run starts from the beginning, as it does, with a warning, if the checkpoint is damaged
        or of another run.
        """
        if not self.path.exists():
            return
        try:
            tensors, state = read_checkpoint(self.path)
            self._check(tensors, state)
        except CheckpointError as error:
            if trainer.is_global_zero:
                logger.warning("%s is not used, and the run starts over: %s", self.path, error)
            return
        with torch.no_grad():
            for name, parameter in trainable(pl_module):
                parameter.copy_(tensors[f"trained.{name}"])
        self._optimizer = {name: tensor for name, tensor in tensors.items() if name.startswith(("step", *MOMENTS))}
        kept = "best" if state["best"]["epoch"] != state["epoch"] else "trained"
        self.best.weights = {name: tensors[f"{kept}.{name}"] for name, _ in trainable(pl_module)}
        self.best.epoch, self.best.scores = state["best"]["epoch"], state["best"]["scores"]
        for name in CURVES:
            setattr(self.curves, name, state["curves"][name])
        self.epoch, self.resumed_epochs = state["epoch"], [*state["resumed_epochs"], state["epoch"]]
        self.seconds, self.peak.peak_bytes = state["seconds"], state["peak_bytes"]
        pl_module.trained_in_train_mode = state["trained_in_train_mode"]
        trainer.precision_plugin.load_state_dict(state["loss_scale"])
        trainer.fit_loop.epoch_progress.current.increment_by(self.epoch)
        trainer.fit_loop.epoch_loop._batches_that_stepped = state["step"]  # the step that loggers are told
        trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.increment_by(
            state["step"]
        )
        if trainer.is_global_zero:
            print(f"  goes on after epoch {self.epoch}/{trainer.max_epochs}", file=sys.stderr, flush=True)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and check that all processes start from the same epoch."""
        self._starts["fit"] = time.perf_counter()
        if trainer.strategy.broadcast(self.epoch) != self.epoch:
            raise ConfigError(
                f"checkpoint {self.path} is not the same on all machines; choose a results folder that they share"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the optimizer, which exists by now, its state back."""
        if not self._optimizer:
            return
        optimizer = trainer.optimizers[0]
        state = {}
        for index, (name, parameter) in enumerate(_optimized(optimizer, pl_module)):
            moments = {key: spread_like(self._optimizer[f"{key}.{name}"], parameter) for key in MOMENTS}
            state[index] = {"step": self._optimizer[f"step.{name}"], **moments}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self._optimizer = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the checkpoint; if that fails, say so and train on."""
        optimizer, epoch = trainer.optimizers[0], trainer.current_epoch + 1
        tensors = {f"trained.{name}": whole(parameter) for name, parameter in trainable(pl_module)}
        for name, parameter in _optimized(optimizer, pl_module):
            tensors |= {f"{key}.{name}": whole(optimizer.state[parameter][key]) for key in ("step", *MOMENTS)}
        if self.best.epoch != epoch:
            tensors |= {f"best.{name}": weights for name, weights in self.best.weights.items()}
        now = time.perf_counter()
        state = {
            "identity": self.identity,
            "epoch": epoch,
            "step": trainer.global_step,
            "best": {"epoch": self.best.epoch, "scores": self.best.scores},
            "curves": {name: getattr(self.curves, name) for name in CURVES},
            "loss_scale": trainer.precision_plugin.state_dict(),
            "trained_in_train_mode": pl_module.trained_in_train_mode,
            "resumed_epochs": self.resumed_epochs,
            "seconds": {kind: self.seconds[kind] + now - start for kind, start in self._starts.items()},
            "peak_bytes": self.peak.peak_bytes,
        }
        if trainer.is_global_zero:
            try:
                write_checkpoint(self.path, tensors, state)
            except (OSError, SafetensorError) as error:
                logger.warning("no checkpoint is kept of epoch %d: %s", epoch, one_line(error))

    def _check(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        then, now = state["identity"], self.identity  # an older checkpoint may say more, such as where the reviews lay
        if changed := [key for key in sorted(now) if then.get(key) != now[key]]:
            raise CheckpointError(
                f"it is of a run with another {changed[0]} ({then.get(changed[0])!r}, now {now[changed[0]]!r})"
            )
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise CheckpointError(f"{name} holds values that are not finite")


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a state, which is plain JSON, as one file, whole or not at all."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    with atomic(path) as temporary:
        save_file(on_cpu, temporary, metadata={"state": text, "crc32": str(crc32(text, on_cpu))})


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of a checkpoint.

    Raises:
        CheckpointError: the file cannot be read, or is not as it was written.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"it is damaged ({one_line(error)})") from error
    text = metadata.get("state", "")
    if metadata.get("crc32") != str(crc32(text, tensors)):
        raise CheckpointError("it is damaged (its checksum is another)")
    state: dict[str, Any] = json.loads(text)
    return tensors, state


def crc32(text: str, tensors: Mapping[str, Tensor]) -> int:
    """A checksum over a text and named tensors on the CPU, whatever their order."""
    found = zlib.crc32(text.encode())
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].numpy().data, zlib.crc32(name.encode(), found))
    return found


def _optimized(optimizer: torch.optim.Optimizer, pl_module: L.LightningModule) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters of an optimizer in its own order, which its state dict counts by, with their names."""
    names = {id(parameter): name for name, parameter in trainable(pl_module)}
    return [(names[id(parameter)], parameter) for group in optimizer.param_groups for parameter in group["params"]]
