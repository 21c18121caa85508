"""A run over several devices: one process for each, which of them this is, and starting them.

torchrun and srun start the processes themselves and say in the environment which is which. Without them `start` does
the same on one machine. A run on one device has one process, which is started by nobody.
"""

import functools
import logging
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from lora_study.config import ConfigError, TrainConfig, check


class DeviceError(RuntimeError):
    """One of a run's processes failed or died; the message says which and how."""


@dataclass(frozen=True)
class Place:
    """Which of a run's processes this is.

    Attributes:
        rank: Number among all, from 0; the first writes the results.
        local_rank: Number among those of this machine, and of the GPU it uses.
    """

    rank: int = 0
    local_rank: int = 0


def find_place(config: TrainConfig) -> Place | None:
    """This process's place in a run, or None if the run's processes are still to be started.

    Raises:
        ConfigError: other processes were started than the config asks for, or it asks for several machines, on which
            nothing can be started from here.
    """
    wanted = config.devices * config.num_nodes
    by_torchrun, by_srun = "RANK" in os.environ, int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if by_torchrun:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    elif by_srun and wanted > 1:  # with one device each task is a run of its own
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    elif config.num_nodes > 1:
        raise ConfigError(
            f"train.num_nodes: {config.num_nodes} machines need a process per device on each; start them with "
            "torchrun or srun, or set it to 1"
        )
    else:
        return Place() if wanted == 1 else None
    rank, local_rank, started = (int(os.environ[name]) for name in names)
    check(
        started == wanted,
        "train.devices",
        config.devices,
        f"{started} processes were started, and train.devices times train.num_nodes ({config.num_nodes}) must be that",
    )
    return Place(rank, local_rank)


def environment(config: TrainConfig) -> ClusterEnvironment:
    """What tells Lightning the same; left to itself it would also start processes, and jobs anew."""
    if "RANK" in os.environ:
        return TorchElasticEnvironment()
    if config.devices * config.num_nodes > 1:
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


def start(processes: int, work: Callable[[], Any]) -> None:
    """Do the same work in several new processes at once, each in its place; the end of one ends all.

    Args:
        processes: How many.
        work: What each does; a function of a module, or a `functools.partial` of one.

    Raises:
        DeviceError: a process died.
        Exception: what the work raised in the first process to fail.
    """
    # Not a pool: its processes outlive their task, and the others would wait in vain for what one of them owes.
    failures = multiprocessing.get_context("spawn").SimpleQueue()
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns of each process that it ends
    placed = functools.partial(_work, processes, find_free_network_port(), work, failures)
    context = spawn(placed, nprocs=processes, join=False)  # type: ignore[no-untyped-call]
    try:
        while not context.join():
            pass
    except ProcessExitedException as error:
        if not failures.empty():
            raise failures.get() from None
        ending = f"killed by {error.signal_name}" if error.signal_name else f"exit status {error.exit_code}"
        raise DeviceError(f"the process of device {error.error_index} ended: {ending}") from None
    finally:
        for process in context.processes:  # Ctrl-C, say: none may be left behind
            process.terminate()
            process.join()


def _work(processes: int, port: int, work: Callable[[], Any], failures: Any, rank: int) -> None:
    """In one of the new processes: set what torchrun would, and work."""
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
        failures.put(error)
        raise SystemExit(1) from error
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # now: its threads have been seen to abort a process that exits


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over devices, whole on each of them; each must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, spread over devices as another is, if that one is."""
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor
