"""Which of a run's processes this one is, as the environment says.

torchrun and srun start the processes of a run on several devices themselves and say in the environment which is which.
A run on one device has one process, whatever started it. Nothing here imports torch or Lightning, which reads some of
the same variables when it is imported.
"""

import os
from dataclasses import dataclass

from lora_study.base.errors import ConfigError, check
from lora_study.config import TrainConfig

_BY_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_BY_SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
_NUMBERS = (*_BY_TORCHRUN, *_BY_SRUN, "SLURM_STEP_NUM_TASKS", "SLURM_NODEID", "MASTER_PORT", "JSM_NAMESPACE_RANK")


@dataclass(frozen=True)
class Place:
    """Which of a run's processes this is.

    Attributes:
        rank: Number among all, from 0; the first writes the results.
        local_rank: Number among those of this machine; also that of the GPU it uses.
    """

    rank: int = 0
    local_rank: int = 0


def check_environment() -> None:
    """Unset the variables of torchrun and srun that are empty.

    Raises:
        ConfigError: one is not a number, or Lightning would take a setting from one that no record would show.
    """
    for name in os.environ:
        set_unseen = name.startswith("PL_TRAINER_") and os.environ[name]
        check(not set_unseen, name, os.environ[name], "it would change training and scoring without a word; unset it")
    for name in _NUMBERS:
        value = os.environ.get(name, "0").strip()
        if not value:
            del os.environ[name]
            continue
        remedy = "torchrun and srun set the environment variable to a number; unset it"
        check(value.isascii() and value.isdigit(), name, os.environ.get(name), remedy)


def find_place(config: TrainConfig) -> Place | None:
    """This process's place in a run, or None if the run's processes are still to be started.

    Raises:
        ConfigError: the environment is not all that torchrun or srun would set, other processes were started than the
            config asks for, or it asks for several machines, on which nothing can be started from here.
    """
    check_environment()
    if "RANK" in os.environ:
        return _by_torchrun(config)
    if config.processes > 1 and _tasks() > 1:  # with one device each task is a run of its own
        return _by_srun(config)
    if config.num_nodes > 1:
        raise ConfigError(
            f"train.num_nodes: {config.num_nodes} machines need a process per device on each; start them with "
            "torchrun or srun, or set it to 1"
        )
    return Place() if config.processes == 1 else None


def _by_torchrun(config: TrainConfig) -> Place:
    missing = [name for name in _BY_TORCHRUN if name not in os.environ]
    alone = os.environ["RANK"] == "0" and os.environ.get("WORLD_SIZE", "1") == "1"
    if missing and alone and config.processes == 1:
        return Place()
    if missing:
        raise ConfigError(f"RANK is set and {' and '.join(missing)} not; start it with torchrun, or unset RANK")
    rank, local_rank, started = (int(os.environ[name]) for name in _BY_TORCHRUN)
    return _checked(config, rank, local_rank, started, "torchrun")


def _by_srun(config: TrainConfig) -> Place:
    by_hand = ConfigError(
        f"SLURM_NTASKS is {_tasks()}, but this process was not started by srun; start it with srun, or unset "
        "SLURM_NTASKS to have its processes started here"
    )
    if any(name not in os.environ for name in ("SLURM_PROCID", "SLURM_LOCALID")):  # in an salloc shell
        raise by_hand
    rank, local_rank = (int(os.environ[name]) for name in ("SLURM_PROCID", "SLURM_LOCALID"))
    place = _checked(config, rank, local_rank, _tasks(), "srun")
    # The script of a batch job has a rank as well, 0, but is no step of the job.
    if rank == 0 and "SLURM_STEP_ID" not in os.environ and "SLURM_STEPID" not in os.environ:
        raise by_hand
    return place


def _tasks() -> int:
    """How many tasks were started together; a shell in a job is one task, however many the job has."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1")))


def _checked(config: TrainConfig, rank: int, local_rank: int, started: int, starter: str) -> Place:
    """The place of these numbers, if they are those of the run."""
    check(
        started == config.processes,
        "train.devices",
        config.devices,
        f"{started} processes were started; train.devices times train.num_nodes ({config.num_nodes}) must be as many",
    )
    remedy = f"the run has {started} processes, {config.devices} on each machine; start it with {starter}"
    check(rank < started and local_rank < config.devices, "rank and local rank", (rank, local_rank), remedy)
    return Place(rank, local_rank)
