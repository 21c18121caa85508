"""The command line: parse and call.

Exit status 0 done, 1 a run failed, 2 a user's mistake in one line, 130 interrupted by Ctrl-C or SIGTERM.
"""

import dataclasses
import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from lora_study.base import interrupts, streams
from lora_study.base.errors import ConfigError, check, one_line
from lora_study.base.files import user_path
from lora_study.base.threads import wait_briefly
from lora_study.config import ExperimentConfig, check_source
from lora_study.config_files import ConfigParser, experiment_from, experiment_parser, load_study, load_sweep
from lora_study.training.places import check_environment, find_place

GOES_ON = {  # what to type after Ctrl-C
    "run": "the same command with --resume goes on after the last finished epoch",
    "reproduce": "finished runs are kept, and the same command goes on",
    "sweep": "finished runs are kept, and the same command goes on",
}
DESCRIPTION = "LoRA, last-two-layers and full fine-tuning of DistilBERT on IMDb reviews."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    wait_briefly()  # before anything loads torch
    streams.make_usable()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if not debug:  # or torch prints pages of addresses where one of several processes has ended before another
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with interrupts.handled("lora-study: interrupted"):
        return _run_command(arguments, debug)


def _run_command(arguments: list[str], debug: bool) -> int:
    """Parse and call; a mistake is one line."""
    try:
        return _call(arguments)
    except ConfigError as error:
        if debug:
            raise
        print(f"lora-study: error: {one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output, such as head, has seen enough
        streams.drop_output()
        return 0
    except OSError as error:  # a full disk, a folder that vanished: nothing a traceback would explain better
        if debug:
            raise
        print(f"lora-study: error: {one_line(error)}", file=sys.stderr)
        return 1


def _call(arguments: list[str]) -> int:
    """Parse and call."""
    try:
        check_environment()
        parser = build_parser()
        options = parser.parse_args(arguments)
        if not options.subcommand:
            parser.print_help()
            return 0
        if advice := GOES_ON.get(options.subcommand):
            speaks = os.environ.get("RANK", "0") == "0"  # one of several processes speaks for all
            interrupts.say(f"lora-study: interrupted; {advice}" if speaks else "")
        command = options[options.subcommand]
        for name, value in vars(command).items():
            if isinstance(value, Path):
                command[name] = user_path(value)
        if "RANK" in os.environ and options.subcommand in ("reproduce", "sweep"):
            raise ConfigError(
                f"{options.subcommand} starts the processes of its runs itself; start it without torchrun"
            )
        return COMMANDS[options.subcommand](command, shlex.join(["lora-study", *arguments]))
    finally:
        streams.flush()


def build_parser() -> ConfigParser:
    """The parser of all commands."""
    parser = ConfigParser(prog="lora-study", description=DESCRIPTION, version=_version(), exit_on_error=False)
    parser.add_argument("--debug", action="store_true", help="Show tracebacks and debug messages.")
    commands = parser.add_subcommands(required=False)

    run = experiment_parser()
    run.add_argument("--results-dir", type=Path, default=Path("results/single"), help="Folder for the run's results.")
    run.add_argument("--overwrite", action="store_true", help="Replace a completed run of the same name and seed.")
    run.add_argument("--resume", action="store_true", help="Go on from the last epoch's end if it was interrupted.")
    commands.add_subcommand("run", run, help="Train and test one experiment.")

    reproduce = ConfigParser(exit_on_error=False)
    reproduce.add_argument(
        "--study", type=Path, required=True, help="Study file, such as configs/studies/embedded.yaml."
    )
    reproduce.add_argument("--results-dir", type=Path, help="Folder for the results; default results/STUDY.")
    reproduce.add_argument("--seeds", type=int, help="Run seeds 1 to this number instead of the study's own.")
    _add_inputs_and_launcher(reproduce)
    commands.add_subcommand("reproduce", reproduce, help="Run a study, skipping finished runs, and write its report.")

    sweep = ConfigParser(exit_on_error=False)
    sweep.add_argument(
        "--config", type=Path, required=True, help="Sweep file, such as configs/sweeps/embedded_ranks.yaml."
    )
    sweep.add_argument("--results-dir", type=Path, help="Folder for the results; default results/SWEEP.")
    sweep.add_argument("--max-trials", type=int, help="Try at most this many settings.")
    _add_inputs_and_launcher(sweep)
    commands.add_subcommand(
        "sweep", sweep, help="Try many settings of an experiment, choose by validation accuracy, and test once."
    )

    inspect = experiment_parser()
    inspect.add_argument("--json", action="store_true", help="Print one JSON object.")
    commands.add_subcommand(
        "inspect", inspect, help="Show the model and count its parameters, without weights or data."
    )

    report = ConfigParser(exit_on_error=False)
    report.add_argument("--results-dir", type=Path, required=True, help="Folder of a study's results.")
    commands.add_subcommand("report", report, help="Write tables, figures and pages again, from records alone.")

    claims = ConfigParser(exit_on_error=False)
    claims.add_argument("--results-dir", type=Path, required=True, help="Folder of a study's results.")
    claims.add_argument("--json", action="store_true", help="Print a JSON list.")
    commands.add_subcommand("claims", claims, help="Judge every claim of the article by a study's records.")

    export = ConfigParser(exit_on_error=False)
    export.add_argument("--run", type=Path, required=True, help="Folder of a completed run of mode lora.")
    export.add_argument("--output", type=Path, required=True, help="Folder to write.")
    export.add_argument("--format", type=Literal["peft"], default="peft", help="Hugging Face PEFT.")
    export.add_argument("--overwrite", action="store_true", help="Replace a folder that is not empty.")
    commands.add_subcommand("export", export, help="Write a run's LoRA and head as an adapter, apart from the encoder.")

    merge = ConfigParser(exit_on_error=False)
    merge.add_argument("--run", type=Path, required=True, help="Folder of a completed run.")
    merge.add_argument("--output", type=Path, required=True, help="Folder to write.")
    merge.add_argument("--format", type=Literal["hf", "onnx"], default="hf", help="Weights as safetensors, or ONNX.")
    merge.add_argument("--overwrite", action="store_true", help="Replace a folder that is not empty.")
    commands.add_subcommand("merge", merge, help="Write a run's model as a plain Hugging Face folder, or as ONNX.")

    predict = ConfigParser(exit_on_error=False)
    predict.add_argument("--run", type=Path, required=True, help="Folder of a completed run.")
    predict.add_argument("texts", type=str, nargs="*", help="Reviews to classify.")
    predict.add_argument(
        "--file",
        help="Reviews: a .csv, .tsv, .jsonl or .parquet with a column text (and id), a .txt with one per line (all also"
        " with .gz), or - for lines of stdin.",
    )
    predict.add_argument("--text-column", help="Column of the texts, where its name does not tell.")
    predict.add_argument("--output", type=Path, help="A .csv or .jsonl file; by default csv is printed.")
    predict.add_argument(
        "--precision",
        type=Literal["32-true", "bf16-true", "auto"],
        default="32-true",
        help="bf16-true is faster where the machine has it; auto takes it there.",
    )
    commands.add_subcommand(
        "predict", predict, help="Classify reviews: id, label and probability of the label positive, in their order."
    )
    return parser


def _version() -> str:
    try:
        return version("lora-study")
    except PackageNotFoundError:  # a checkout on PYTHONPATH
        return "(not installed)"


def _add_inputs_and_launcher(parser: ConfigParser) -> None:
    parser.add_argument("--source", help="Where all reviews come from, instead of the experiments' data.source.")
    parser.add_argument("--backbone", help="What all start from, instead of the experiments' model.backbone.")
    parser.add_argument(
        "--launcher", default="local", help="Where runs are run: local (this machine), ray or slurm (a cluster)."
    )
    parser.add_argument("--workers", type=int, help="How many runs go on at once; default 1, on a cluster what fits.")


def _with_inputs(config: ExperimentConfig, options: Any) -> ExperimentConfig:
    """An experiment with the reviews and the encoder that the command line names; they are of no revision."""
    if options.source is not None:
        check_source(options.source, "--source")
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, source=options.source, revision=None)
        )
    if options.backbone is not None:
        model = dataclasses.replace(config.model, backbone=options.backbone, revision=None)
        config = dataclasses.replace(config, model=model)
    return config


def run(options: Any, command: str) -> int:
    """Train and test one experiment."""
    config = _experiment(options)
    place = find_place(config.train)  # before Lightning is imported, which reads the same variables

    from lora_study.studies.study import outcome
    from lora_study.training.experiment import run_experiment

    record = run_experiment(
        config, options.results_dir, command=command, overwrite=options.overwrite, resume=options.resume
    )
    if place is None or place.rank == 0:  # one of several processes speaks for all
        print(f"{outcome(record)}\n{options.results_dir / config.name / f'seed-{config.seed}'}")
    return 0 if record.status == "completed" else 1


def reproduce(options: Any, command: str) -> int:
    """Run a study and write its report."""
    from lora_study.report import write_report
    from lora_study.studies.launchers import make_launcher
    from lora_study.studies.study import run_study

    study, experiments = load_study(options.study)
    if options.seeds is not None:
        check(options.seeds >= 1, "--seeds", options.seeds, "use 1 or more")
        study = dataclasses.replace(study, seeds=tuple(range(1, options.seeds + 1)))
    experiments = [_with_inputs(experiment, options) for experiment in experiments]
    results_dir = options.results_dir or Path("results") / study.name
    launcher = make_launcher(options.launcher, options.workers)
    records = run_study(study, experiments, results_dir, launcher, command=command)
    write_report(results_dir)
    failed = [record for record in records if record.status == "failed"]
    print(f"{len(records) - len(failed)} of {len(records)} runs completed; report: {results_dir / 'report.md'}")
    return 1 if failed else 0


def sweep(options: Any, command: str) -> int:
    """Run a sweep and write its page."""
    from lora_study.report.sweep_report import write_sweep_report
    from lora_study.studies.launchers import make_launcher
    from lora_study.studies.sweep import run_sweep

    config, base = load_sweep(options.config)
    results_dir = options.results_dir or Path("results") / config.name
    launcher = make_launcher(options.launcher, options.workers)
    records = run_sweep(
        config, _with_inputs(base, options), results_dir, launcher, max_trials=options.max_trials, command=command
    )
    write_sweep_report(results_dir)
    failed = [record for record in records if record.status == "failed"]
    print(f"{len(records) - len(failed)} of {len(records)} runs completed; report: {results_dir / 'sweep.md'}")
    return 1 if failed else 0


def inspect(options: Any, command: str) -> int:
    """Show the model before and after its mode is applied."""
    from lora_study.model.encoder import build_skeleton
    from lora_study.model.modes import apply_mode, count_parameters

    config = _experiment(options)
    model = build_skeleton(config.model)
    before = count_parameters(model)
    lora_modules = apply_mode(model, config)
    counts = count_parameters(model)
    if options.json:
        content = {
            "name": config.name,
            "mode": config.mode,
            "parameters": counts.to_dict(),
            "lora_modules": lora_modules,
        }
        print(json.dumps(content, indent=2))
        return 0
    print(f"{config.name}: mode {config.mode} on {config.model.backbone}, {before.total:,} parameters before\n")
    print(model)
    print(f"\nLoRA beside: {', '.join(lora_modules) or 'no layer'}\n")
    for kind, count in counts.to_dict().items():
        print(f"{kind:>10} {count:>12,}  {count / counts.total:8.3%}")
    return 0


def report(options: Any, command: str) -> int:
    """Write the report of a study, or the page of a sweep, again."""
    from lora_study.evidence.trials import SWEEP_FILE
    from lora_study.report import write_report
    from lora_study.report.sweep_report import write_sweep_report

    write = write_sweep_report if (options.results_dir / SWEEP_FILE).exists() else write_report
    for path in write(options.results_dir):
        print(path)
    return 0


def claims(options: Any, command: str) -> int:
    """Print a verdict for every claim."""
    from lora_study.base.text_tables import markdown_table
    from lora_study.evidence.claims import claims_json, claims_table
    from lora_study.evidence.claims.headline import age_of_rules, headline
    from lora_study.report.inputs import read_study

    study = read_study(options.results_dir)
    for line in study.warnings:
        print(f"warning: {one_line(line)}", file=sys.stderr)
    if options.json:
        print(json.dumps(claims_json(study.verdicts), indent=2))
    else:
        lines = (*headline(study.verdicts), age_of_rules(study.records))
        print("\n".join(lines), markdown_table(claims_table(study.verdicts)), sep="\n\n")
    return 0


def export(options: Any, command: str) -> int:
    """Write a run's adapter."""
    from lora_study.sharing.export import export_run

    print(export_run(options.run, options.output, options.overwrite))
    return 0


def merge(options: Any, command: str) -> int:
    """Write a run's model with LoRA merged in."""
    from lora_study.sharing.merge import write_merged
    from lora_study.sharing.trained import load_run

    for path in write_merged(load_run(options.run), options.output, options.format, options.overwrite):
        print(path)
    return 0


def predict(options: Any, command: str) -> int:
    """Classify reviews."""
    from lora_study.base.progress import duration
    from lora_study.data.stream import given_reviews, open_reviews
    from lora_study.sharing.predict import check_output, prepare, write_predictions
    from lora_study.sharing.trained import load_run

    if bool(options.texts) == bool(options.file):
        raise ConfigError("predict takes texts or a --file of them, one of the two")
    check(not options.text_column or bool(options.file), "--text-column", options.text_column, "it needs a --file")
    if options.output:
        check_output(options.output, options.file)
    with (
        open_reviews(options.file, options.text_column)
        if options.file
        else nullcontext(given_reviews(options.texts)) as reviews
    ):
        trained = load_run(options.run)
        prepare(trained, options.precision)
        totals = write_predictions(trained, reviews, options.output)
    if options.file or totals.truncated:
        length = trained.config.data.max_length
        print(
            f"{totals.reviews:,} reviews in {duration(totals.seconds)}, {totals.truncated:,} cut to {length} tokens",
            file=sys.stderr,
        )
    return 0


COMMANDS = {
    "run": run,
    "reproduce": reproduce,
    "sweep": sweep,
    "inspect": inspect,
    "report": report,
    "claims": claims,
    "export": export,
    "merge": merge,
    "predict": predict,
}


def _experiment(options: Any) -> ExperimentConfig:
    plain = options.as_dict()
    return experiment_from({f.name: plain[f.name] for f in dataclasses.fields(ExperimentConfig)})


if __name__ == "__main__":
    sys.exit(main())
