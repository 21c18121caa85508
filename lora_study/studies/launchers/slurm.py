"""Runs as jobs of a Slurm cluster, handed over by submitit as one job array.

The results folder must be on a disk that the nodes share. What the jobs need beyond a GPU is set in Slurm's own
variables, which sbatch reads: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT (a day if unset), SBATCH_MEM_PER_NODE.
submitit hands jobs over, and results back, as pickle files in .slurm/ inside the results folder: nobody but you should
be able to write there.
"""

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from lora_study.base.errors import ConfigError, one_line
from lora_study.base.interrupts import owed
from lora_study.config import ExperimentConfig
from lora_study.records.record import Record
from lora_study.studies.launchers.worker import check_one_device, lost, work

TIME_LIMIT = 24 * 60  # minutes; submitit's own default of 5 would end most runs
POLL = 2.0  # seconds between looks at the jobs


class SlurmLauncher:
    """Runs every experiment as one job, with train.threads CPUs (1 if null) and one GPU unless it trains on the CPU.

    Args:
        workers: How many jobs at most run at once; None leaves it to Slurm.
        cluster: submitit's name for the cluster; 'local' means processes of this machine, for trying it out.
    """

    def __init__(self, workers: int | None = None, cluster: str = "slurm") -> None:
        self.workers = workers
        self.cluster = cluster

    def run(
        self, runs: Sequence[ExperimentConfig], results_dir: Path, command: str
    ) -> Generator[tuple[ExperimentConfig, Record | None], None, None]:
        """See `lora_study.studies.launchers.Launcher`."""
        check_one_device(runs)
        going = dict(zip(self._submit(runs, results_dir.resolve(), command), runs, strict=True))

        def cancel() -> None:
            for job in going:
                job.cancel(check=False)

        try:
            with owed(cancel):
                while going:
                    for job in [job for job in going if job.done()]:
                        yield going[job], _record(job, going[job], results_dir, command)
                        del going[job]
                    time.sleep(POLL if going else 0)
        finally:
            cancel()

    def _submit(self, runs: Sequence[ExperimentConfig], results_dir: Path, command: str) -> list[Any]:
        try:
            executor = submitit.AutoExecutor(results_dir / ".slurm", cluster=self.cluster)
            executor.update_parameters(
                name="lora-study",
                timeout_min=TIME_LIMIT,
                cpus_per_task=max(run.train.threads or 1 for run in runs),
                gpus_per_node=int(any(run.train.accelerator != "cpu" for run in runs)),
                slurm_array_parallelism=self.workers or len(runs),
            )
            with executor.batch():
                return [executor.submit(work, run, results_dir, command) for run in runs]
        except (RuntimeError, FailedJobError, FailedSubmissionError) as error:
            raise ConfigError(
                f"--launcher slurm: the jobs cannot be submitted ({one_line(error)[:300]}); "
                "run it on a machine that has sbatch, or use --launcher local"
            ) from error


def _record(job: Any, run: ExperimentConfig, results_dir: Path, command: str) -> Record | None:
    """The record of a run whose job has ended."""
    try:
        record: Record | None = job.result()
    except (UncompletedJobError, FailedJobError) as error:
        reason = f"Slurm job {job.job_id} ended without a record: {one_line(error)[:300]}"
        return lost(run, results_dir, command, reason)
    return record
