"""A run over several devices: one process for each, and starting them where torchrun or srun has not.

`lora_study.training.places` says which of them this process is.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from operator import itemgetter
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from lora_study.base.errors import ConfigError, one_line
from lora_study.base.interrupts import end, in_child, shielded
from lora_study.config import TrainConfig

PATIENCE = timedelta(minutes=10)  # how long a process waits for another, to start with or at any step


class DeviceError(RuntimeError):
    """One of a run's processes failed or died; the message says which and how."""


def environment(config: TrainConfig) -> ClusterEnvironment:
    """What tells Lightning this process's place; by default it would also start processes and requeue jobs.

    Raises:
        ConfigError: srun was given options that Lightning does not take.
    """
    if config.processes == 1:
        return LightningEnvironment()
    if "RANK" in os.environ:
        return TorchElasticEnvironment()
    try:
        return SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:
        raise ConfigError(f"SLURM_NTASKS: {one_line(error)}") from error


def start(processes: int, work: Callable[[], Any]) -> None:
    """Do the same work in several new processes at once, each in its place; if one fails, all are ended.

    Args:
        processes: How many.
        work: What each does; a function of a module, or a `functools.partial` of one.

    Raises:
        DeviceError: a process died.
        Exception: what the work raised in the first process to fail.
    """
    # Not a pool: its processes outlive their task, and the others would wait in vain for one that failed.
    context = multiprocessing.get_context("spawn")
    port = find_free_network_port()
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    started = [
        context.Process(target=_work, args=(processes, port, work, failure, rank))
        for rank, (_, failure) in enumerate(pipes)
    ]
    try:
        with shielded():
            for process in started:
                process.start()
        going: dict[Any, int] = {process.sentinel: rank for rank, process in enumerate(started)}
        while going:
            for sentinel in wait(going):
                rank = going.pop(sentinel)
                started[rank].join()
                if code := started[rank].exitcode:
                    failures = [failure.recv() for failure, _ in pipes if failure.poll()]
                    if failures:
                        raise min(failures, key=itemgetter(0))[1]
                    ending = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
                    raise DeviceError(f"the process of device {rank} ended: {ending}")
    finally:
        end(started)  # none may be left behind


def _work(processes: int, port: int, work: Callable[[], Any], failure: Connection, rank: int) -> None:
    """In one of the new processes: set what torchrun would set, and work."""
    in_child()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    try:
        work()
    except Exception as error:
        failure.send((time.monotonic(), error))
        sys.exit(1)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # now: its threads have been seen to abort a process that exits


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be spread over devices; every device has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, spread over devices in the same way as another one, if that is spread."""
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor
