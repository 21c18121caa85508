"""The commands: functions that return the exit status. Their parameters are the flags, their docstrings the help.

What a command needs is imported when it is called, so that none waits for what only another needs.
"""

import dataclasses
import json as json_format
import sys
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from lora_study.base.errors import ConfigError, check, one_line
from lora_study.base.files import exists
from lora_study.config import ExperimentConfig, check_source, local_folder
from lora_study.config_files import load_study, load_sweep
from lora_study.records.record import run_dir
from lora_study.training.places import find_place


@dataclasses.dataclass(frozen=True)
class ManyRuns:
    """What all runs share, and where they run.

    Args:
        source: Where all reviews come from, instead of each experiment's data.source.
        backbone: The encoder that all start from, instead of each experiment's model.backbone.
        launcher: Where to run: local (this machine), ray or slurm (a cluster).
        workers: How many runs to do at once; 1 if left out, on a cluster as many as fit.
    """

    source: str | None = None
    backbone: str | None = None
    launcher: str = "local"
    workers: int | None = None

    def with_inputs(self, config: ExperimentConfig) -> ExperimentConfig:
        """An experiment with the reviews and the encoder that are named here, which have no revision.

        Raises:
            ConfigError: there are no such reviews or no such encoder; before the first run, not in the last one.
        """
        if self.source is not None:
            data = dataclasses.replace(config.data, source=self.source, revision=None)
            config = dataclasses.replace(config, data=data)
        if self.backbone is not None:
            model = dataclasses.replace(config.model, backbone=self.backbone, revision=None)
            config = dataclasses.replace(config, model=model)
        check_source(config.data.source, "data.source" if self.source is None else "--source")
        local_folder(config.model.backbone, "model.backbone" if self.backbone is None else "--backbone")
        return config


def run(
    config: ExperimentConfig,
    command: str,
    results_dir: Path = Path("results/single"),
    overwrite: bool = False,
    resume: bool = False,
) -> int:
    """Train and test one experiment.

    Args:
        config: The experiment.
        command: What was typed.
        results_dir: Folder for the run's results.
        overwrite: Replace a completed run of the same name and seed, even if this one fails.
        resume: Continue an interrupted run from its last finished epoch.
    """
    place = find_place(config.train)  # before Lightning is imported, which reads the same variables

    from lora_study.studies.study import outcome
    from lora_study.training.experiment import checkpoint_of, run_experiment

    folder, speaks = run_dir(results_dir, config.name, config.seed), place is None or place.rank == 0
    if resume and speaks and not checkpoint_of(folder).exists() and not (folder / "record.json").exists():
        print(f"{folder} has no checkpoint to go on from; the run starts at its beginning", file=sys.stderr)
    record = run_experiment(config, results_dir, command=command, overwrite=overwrite, resume=resume)
    if speaks:  # one of several processes, for all
        print(f"{outcome(record)}\n{folder}")
    return 0 if record.status == "completed" else 1


def reproduce(
    runs: ManyRuns, command: str, study: Path, results_dir: Path | None = None, seeds: int | None = None
) -> int:
    """Run a study, skipping finished runs, and write its report.

    Args:
        runs: What all its runs share.
        command: What was typed.
        study: Study file, such as configs/studies/embedded.yaml.
        results_dir: Folder for the results; default results/STUDY.
        seeds: Run seeds 1 up to this number instead of the study's own.
    """
    from lora_study.report import write_report
    from lora_study.studies.launchers import make_launcher
    from lora_study.studies.study import run_study

    config, experiments = load_study(study)
    if seeds is not None:
        check(seeds >= 1, "--seeds", seeds, "use 1 or more")
        config = dataclasses.replace(config, seeds=tuple(range(1, seeds + 1)))
    experiments = [runs.with_inputs(experiment) for experiment in experiments]
    results_dir = results_dir or Path("results") / config.name
    launcher = make_launcher(runs.launcher, runs.workers)
    records = run_study(config, experiments, results_dir, launcher, command=command)
    write_report(results_dir)
    status = _ended(records, results_dir / "report.md")
    if config.next and status == 0:
        print(f"next: {config.next}")
    return status


def sweep(
    runs: ManyRuns, command: str, config: Path, results_dir: Path | None = None, max_trials: int | None = None
) -> int:
    """Try many settings of an experiment, choose by validation accuracy, and test once.

    Args:
        runs: What all its runs share.
        command: What was typed.
        config: Sweep file, such as configs/sweeps/embedded_ranks.yaml.
        results_dir: Folder for the results; default results/SWEEP.
        max_trials: Try at most this many settings.
    """
    from lora_study.report.sweep_report import write_sweep_report
    from lora_study.studies.launchers import make_launcher
    from lora_study.studies.sweep import run_sweep

    settings, base = load_sweep(config)
    results_dir = results_dir or Path("results") / settings.name
    launcher = make_launcher(runs.launcher, runs.workers)
    base = runs.with_inputs(base)
    records = run_sweep(settings, base, results_dir, launcher, max_trials=max_trials, command=command)
    write_sweep_report(results_dir)
    return _ended(records, results_dir / "sweep.md")


def _ended(records: Sequence[Any], report: Path) -> int:
    """Say how many runs were completed and where the report is; returns the exit status."""
    completed = sum(record.status == "completed" for record in records)
    print(f"{completed} of {len(records)} runs completed; report: {report}")
    return 0 if completed == len(records) else 1


def inspect(config: ExperimentConfig, json: bool = False) -> int:
    """Show the model and count its parameters, without network or data, and how sure a frozen head lets it be.

    Args:
        config: The experiment.
        json: Print one JSON object.
    """
    from lora_study.model.confidence import cap_before_training, reads_frozen_head
    from lora_study.model.encoder import build_skeleton, describe
    from lora_study.model.modes import apply_mode, count_parameters

    # Of a branch, the commit that is on this machine, if one is: nobody has to be asked for that.
    encoder = dataclasses.replace(config.model, revision=describe(config.model)["revision"])
    config = dataclasses.replace(config, model=encoder)
    model = build_skeleton(encoder)
    before = count_parameters(model)
    modules = apply_mode(model, config)
    counts, cap = count_parameters(model), cap_before_training(config, model)
    if json:
        content = {"name": config.name, "mode": config.mode, "parameters": counts.to_dict(), "lora_modules": modules}
        print(json_format.dumps(content | {"confidence_cap": cap and cap.to_dict()}, indent=2))
        return 0
    print(f"{config.name}: mode {config.mode} on {config.model.backbone}, {before.total:,} parameters before\n")
    print(model)
    print(f"\nLoRA beside: {', '.join(modules) or 'no layer'}\n")
    for kind, count in counts.to_dict().items():
        print(f"{kind:>10} {count:>12,}  {count / counts.total:8.3%}")
    if cap:
        print(f"\nThe head stays as it is drawn, so whatever is trained {cap}.")
    elif reads_frozen_head(model):
        print("\nThe head stays as it is drawn; how sure it can be, the encoder's weights tell, which are not here.")
    return 0


def list_runs(results_dir: Path = Path("results")) -> int:
    """Show the studies and experiments below a folder of results: how many runs, how accurate, with weights or not.

    Args:
        results_dir: Folder of results.
    """
    from lora_study.base.text_tables import markdown_table
    from lora_study.evidence.overview import find_runs, overview

    runs, problems = find_runs(results_dir)
    for line in problems:
        print(f"warning: {one_line(line)}", file=sys.stderr)
    check(bool(runs), "--results-dir", str(results_dir), "no run is below it; `make reproduce` makes the first")
    print(markdown_table(overview(runs)))
    return 0


def report(results_dir: Path, open: bool = False) -> int:
    """Write a study's tables, figures and pages again, from its records.

    Args:
        results_dir: Folder of a study's results, or of a sweep's.
        open: Show the page in a browser.
    """
    from lora_study.evidence.trials import SWEEP_FILE
    from lora_study.report import write_report
    from lora_study.report.sweep_report import write_sweep_report

    write = write_sweep_report if (results_dir / SWEEP_FILE).exists() else write_report
    paths = write(results_dir)
    for path in paths:
        print(path)
    page = next(path for path in paths if path.name in ("report.html", "sweep.md"))
    if open and not webbrowser.open(page.resolve().as_uri()):
        print(f"no browser was found; open {page.resolve().as_uri()} in one", file=sys.stderr)
    return 0


def claims(results_dir: Path, json: bool = False) -> int:
    """Judge every claim of the article by a study's records.

    Args:
        results_dir: Folder of a study's results.
        json: Print a JSON list.
    """
    from lora_study.base.text_tables import markdown_table
    from lora_study.evidence.claims import claims_json, claims_table
    from lora_study.evidence.claims.headline import age_of_rules, headline
    from lora_study.report.material import read_study

    study = read_study(results_dir)
    for line in study.warnings:
        print(f"warning: {one_line(line)}", file=sys.stderr)
    if json:
        print(json_format.dumps(claims_json(study.verdicts), indent=2))
    else:
        lines = (*headline(study.verdicts), age_of_rules(study.records))
        print("\n".join(lines), markdown_table(claims_table(study.verdicts)), sep="\n\n")
    return 0


def export(run: Path, output: Path, format: Literal["peft"] = "peft", overwrite: bool = False) -> int:
    """Write a run's LoRA and head as an adapter, without the encoder.

    Args:
        run: Folder of a completed run of mode lora, or the experiment's name for its newest one below results.
        output: Folder to write.
        format: Hugging Face PEFT.
        overwrite: Replace a folder that is not empty.
    """
    from lora_study.sharing.export import export_run

    print(export_run(_folder(run), output, overwrite))
    return 0


def merge(run: Path, output: Path, format: Literal["hf", "onnx"] = "hf", overwrite: bool = False) -> int:
    """Write a run's model as a plain Hugging Face folder, or as ONNX.

    Args:
        run: Folder of a completed run, or an experiment's name for its newest one below results that keeps weights.
        output: Folder to write.
        format: Weights as safetensors, or ONNX.
        overwrite: Replace a folder that is not empty.
    """
    from lora_study.sharing.merge import write_merged
    from lora_study.sharing.trained import load_run

    for path in write_merged(load_run(_folder(run)), output, format, overwrite):
        print(path)
    return 0


def predict(
    texts: list[str],
    run: Path,
    file: str | None = None,
    text_column: str | None = None,
    output: Path | None = None,
    precision: Literal["32-true", "bf16-true", "auto"] = "32-true",
) -> int:
    """Classify reviews: print each one's id, label and probability of being positive, in order.

    Args:
        texts: Reviews to classify.
        run: Folder of a completed run, or an experiment's name for its newest one below results that keeps weights.
        file: Reviews: a .csv, .tsv, .jsonl or .parquet with a column text (and id), a .txt with one per line (all also
            with .gz), or - for the lines of standard input.
        text_column: Column of the texts; by default the one that the run was trained on, or one known by its name.
        output: A .csv or .jsonl file; if left out, CSV is printed.
        precision: bf16-true is faster on some machines; auto chooses it there.
    """
    from lora_study.base.progress import duration
    from lora_study.data.stream import given_reviews, open_reviews
    from lora_study.sharing.predict import check_output, prepare, write_predictions
    from lora_study.sharing.trained import completed_experiment, load_run

    if bool(texts) == bool(file):
        raise ConfigError("predict takes either texts or a --file of them")
    check(not text_column or bool(file), "--text-column", text_column, "it needs a --file")
    if output:
        check_output(output, file)
    run = _folder(run)
    trained_on = completed_experiment(run).data.text_column
    with open_reviews(file, text_column, trained_on) if file else nullcontext(given_reviews(texts)) as reviews:
        trained = load_run(run)
        prepare(trained, precision)
        totals = write_predictions(trained, reviews, output)
    if file or totals.truncated:
        cut = f"{totals.truncated:,} cut to {trained.config.data.max_length} tokens"
        print(f"{totals.reviews:,} reviews in {duration(totals.seconds)}, {cut}", file=sys.stderr)
    return 0


def _folder(run: Path) -> Path:
    """A run's folder as it was given, or that of an experiment's newest run, which is said."""
    if len(run.parts) != 1 or exists(run):
        return run
    from lora_study.evidence.overview import newest_run

    newest = newest_run(str(run), Path("results")).folder
    print(f"{run}: {newest}, its newest run with weights", file=sys.stderr)
    return newest


COMMANDS: dict[str, Callable[..., int]] = {
    **{function.__name__: function for function in (run, reproduce, sweep, inspect)},
    "list": list_runs,
    **{function.__name__: function for function in (report, claims, export, merge, predict)},
}
