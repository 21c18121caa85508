"""Where the runs of a study or sweep are run: processes of this machine, Ray, or Slurm.

Each run writes its own record into the results folder, which all workers must see. The records are the same whichever
launcher is used, and several may work on one folder at once: each leaves alone the runs that another process holds.
"""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Protocol

from lora_study.base.errors import ConfigError, check
from lora_study.config import ExperimentConfig
from lora_study.records.record import Record
from lora_study.studies.launchers.local import LocalLauncher

LAUNCHERS = ("local", "ray", "slurm")


class Launcher(Protocol):
    """A way to run experiments."""

    def run(
        self, runs: Sequence[ExperimentConfig], results_dir: Path, command: str
    ) -> Generator[tuple[ExperimentConfig, Record | None], None, None]:
        """Run experiments; close the iterator to stop them.

        Args:
            runs: The experiments, with their seeds.
            results_dir: Folder for their records.
            command: What the user typed, for the records.

        Yields:
            Each run as it ends and its record; None if another process holds it.

        Raises:
            ConfigError: the runs cannot be launched this way; none has been started.
        """


def make_launcher(name: str, workers: int | None) -> Launcher:
    """The launcher with this name.

    Args:
        name: One of `LAUNCHERS`.
        workers: At most how many runs go on at once; None means one for 'local', and for the others as many as the
            cluster has room for.

    Raises:
        ConfigError: there is no such launcher, or the package it needs is missing.
    """
    check(name in LAUNCHERS, "--launcher", name, f"use {', '.join(LAUNCHERS)}")
    check(workers is None or workers >= 1, "--workers", workers, "use 1 or more")
    try:
        if name == "ray":
            from lora_study.studies.launchers.ray_cluster import RayLauncher

            return RayLauncher(workers)
        if name == "slurm":
            from lora_study.studies.launchers.slurm import SlurmLauncher

            return SlurmLauncher(workers)
    except ModuleNotFoundError as error:
        raise ConfigError(f"--launcher {name} needs {error.name}; pip install 'lora-study[{name}]'") from error
    return LocalLauncher(workers or 1)
