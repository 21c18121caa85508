"""Runs as tasks of a Ray cluster: the one that RAY_ADDRESS names, or one of this machine's own.

Workers on other machines need this package and must see the results folder, and whatever else the experiments name, at
the same paths.
"""

import os
import signal
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from lora_study.base.errors import ConfigError, one_line
from lora_study.base.interrupts import owed
from lora_study.base.torch_environment import torch_environment
from lora_study.config import ExperimentConfig
from lora_study.records.record import Record
from lora_study.studies.launchers.dispatch import RETRIES, dispatch
from lora_study.studies.launchers.worker import check_one_device, label, lost, work


class RayLauncher:
    """Runs every experiment as one task, with train.threads CPUs (1 if null), and a GPU if the cluster has any.

    Args:
        workers: How many tasks are handed over at once; None hands over all, and Ray starts those it has room for.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers

    def run(
        self, runs: Sequence[ExperimentConfig], results_dir: Path, command: str
    ) -> Generator[tuple[ExperimentConfig, Record | None], None, None]:
        """See `lora_study.studies.launchers.Launcher`."""
        check_one_device(runs)
        resources = _connect()
        # Every run has a process of its own, as with the other launchers.
        task = ray.remote(max_calls=1, max_retries=RETRIES)(_task)

        def start(run: ExperimentConfig, worker: int) -> Any:
            environment = {name: value for name, value in torch_environment().items() if value is not None}
            wants_gpu = run.train.accelerator in ("auto", "gpu") and resources.get("GPU", 0) >= 1
            options: dict[str, Any] = {
                "name": label(run),
                "num_cpus": min(run.train.threads or 1, resources.get("CPU", 1)),
                "num_gpus": int(wants_gpu),
                "runtime_env": {"env_vars": environment},
            }
            return task.options(**options).remote(run, results_dir.resolve(), command, str(Path.cwd()))

        try:
            with owed(ray.shutdown):
                for run, handle in dispatch(runs, self.workers or max(len(runs), 1), start, _wait):
                    try:
                        record: Record | None = ray.get(handle)
                    except RayError as error:
                        reason = f"Ray gave up the run: {type(error).__name__}: {one_line(error)[:300]}"
                        record = lost(run, results_dir, command, reason)
                    yield run, record
        finally:
            ray.shutdown()  # ends the tasks still running


def _connect() -> dict[str, float]:
    """Connect to the cluster, or start one on this machine; returns its resources."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    address = os.environ.get("RAY_ADDRESS", "local")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, include_dashboard=False if address == "local" else None, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"RAY_ADDRESS: {address!r} is not valid ({one_line(error)[:200]}); start the cluster, or unset it"
        ) from error
    signal.signal(signal.SIGTERM, handler)  # Ray has put its own in place
    return dict(ray.cluster_resources())


def _wait(handles: Collection[Any]) -> list[Any]:
    return list(ray.wait(list(handles))[0])


def _task(config: ExperimentConfig, results_dir: Path, command: str, folder: str) -> Record | None:
    os.chdir(folder)  # so that relative paths mean what they meant where the command was typed
    return work(config, results_dir, command)
