"""Lightning's Trainer as every run uses it, without some of its messages and its way with signals."""

import contextlib
import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_only

from lora_study.config import TrainConfig
from lora_study.training import devices
from lora_study.training.log_lines import PlainProgress


def make_trainer(
    config: TrainConfig, device: torch.device, precision: str, callbacks: Sequence[Callback], logger: Logger | None
) -> L.Trainer:
    """A Trainer that computes on this device and leaves checkpoints and the sharing out of batches to us."""
    if config.processes == 1:  # of a task of srun that is a run of its own, Lightning's loggers would take the rank
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
    in_terminal = sys.stderr.isatty()
    return L.Trainer(
        max_epochs=config.epochs,
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=_strategy(config),
        plugins=[devices.environment(config)],
        use_distributed_sampler=False,  # the data module shares batches out itself
        precision=precision,  # type: ignore[arg-type]
        callbacks=[*callbacks, RichProgressBar(leave=True) if in_terminal else PlainProgress()],
        enable_progress_bar=in_terminal,
        num_sanity_val_steps=0,
        logger=logger or False,
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def _strategy(config: TrainConfig) -> Strategy | str:
    """How the devices work together."""
    if config.processes == 1:
        return "auto"
    if config.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=config.processes, tensor_parallel_size=1, timeout=devices.PATIENCE
        )
    # No buffer of the model changes. If they were sent around at every step, of validation too, a device would wait
    # for another that has one batch less.
    return DDPStrategy(broadcast_buffers=False, timeout=devices.PATIENCE)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt: Lightning would exit with status 1, and ignore the next Ctrl-C."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        if not isinstance(ended.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's banner and its advice on data workers: the reviews are in memory."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # some epochs have few steps
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning uses a deprecated name of torch's
        warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # torchmetrics has seen to it
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")  # its new name is unknown to older torch
        # ReviewClassifier sets the mode itself and checks it.
        warnings.filterwarnings("ignore", message=".*eval mode at the start of training.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
