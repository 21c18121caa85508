"""A launcher without processes, for what does not depend on them."""

from lora_study.studies.launchers.worker import work


class InThisProcess:
    def __init__(self):
        self.started = []

    def run(self, runs, results_dir, command):
        for run in runs:
            self.started.append(run)
            yield run, work(run, results_dir, command)
