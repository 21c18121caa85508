"""The command line: parse and call. Exit status 0 done, 1 a run failed, 2 a user's mistake in one line."""

import dataclasses
import json
import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_study.config import ConfigError, ExperimentConfig, check
from lora_study.config_files import ConfigParser, experiment_from, experiment_parser, load_study

DESCRIPTION = "LoRA, last-two-layers and full fine-tuning of DistilBERT on IMDb reviews."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # A scheduler's request to stop is handled as Ctrl-C is: a study's running process is ended with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        parser = build_parser()
        options = parser.parse_args(arguments)
        if not options.subcommand:
            parser.print_help()
            return 0
        return COMMANDS[options.subcommand](options[options.subcommand], shlex.join(["lora-study", *arguments]))
    except ConfigError as error:
        if debug:
            raise
        print(f"lora-study: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lora-study: interrupted; finished runs are kept", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk, a folder that vanished: nothing a traceback would explain better
        if debug:
            raise
        print(f"lora-study: error: {error}", file=sys.stderr)
        return 1


def build_parser() -> ConfigParser:
    """The parser of all commands."""
    parser = ConfigParser(prog="lora-study", description=DESCRIPTION, exit_on_error=False)
    parser.add_argument("--debug", action="store_true", help="Show tracebacks and debug messages.")
    commands = parser.add_subcommands(required=False)

    run = experiment_parser()
    run.add_argument("--results-dir", type=Path, default=Path("results/single"), help="Folder for the run's results.")
    run.add_argument("--overwrite", action="store_true", help="Replace a completed run of the same name and seed.")
    commands.add_subcommand("run", run, help="Train and test one experiment.")

    reproduce = ConfigParser(exit_on_error=False)
    reproduce.add_argument(
        "--study", type=Path, required=True, help="Study file, such as configs/studies/embedded.yaml."
    )
    reproduce.add_argument("--results-dir", type=Path, help="Folder for the results; default results/STUDY.")
    reproduce.add_argument("--seeds", type=int, help="Run seeds 1 to this number instead of the study's own.")
    commands.add_subcommand("reproduce", reproduce, help="Run a study, skipping finished runs, and write its report.")

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
    return parser


def run(options: Any, command: str) -> int:
    """Train and test one experiment."""
    from lora_study.experiment import run_experiment
    from lora_study.study import outcome

    config = _experiment(options)
    record = run_experiment(config, options.results_dir, command=command, overwrite=options.overwrite)
    print(f"{outcome(record)}\n{options.results_dir / config.name / f'seed-{config.seed}'}")
    return 0 if record.status == "completed" else 1


def reproduce(options: Any, command: str) -> int:
    """Run a study and write its report."""
    from lora_study.report import write_report
    from lora_study.study import run_study

    study, experiments = load_study(options.study)
    if options.seeds is not None:
        check(options.seeds >= 1, "--seeds", options.seeds, "use 1 or more")
        study = dataclasses.replace(study, seeds=tuple(range(1, options.seeds + 1)))
    results_dir = options.results_dir or Path("results") / study.name
    records = run_study(study, experiments, results_dir, command=command)
    write_report(results_dir)
    failed = [record for record in records if record.status == "failed"]
    print(f"{len(records) - len(failed)} of {len(records)} runs completed; report: {results_dir / 'report.md'}")
    return 1 if failed else 0


def inspect(options: Any, command: str) -> int:
    """Show the model before and after its mode is applied."""
    from lora_study.backbones import build_skeleton
    from lora_study.modes import apply_mode, count_parameters

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
    """Write the report of a study again."""
    from lora_study.report import write_report

    for path in write_report(options.results_dir):
        print(path)
    return 0


def claims(options: Any, command: str) -> int:
    """Print a verdict for every claim."""
    from lora_study.claims import claims_json, claims_table
    from lora_study.formats import markdown_table
    from lora_study.report.inputs import read_study

    study = read_study(options.results_dir)
    for line in study.warnings:
        print(f"warning: {line}", file=sys.stderr)
    verdicts = study.verdicts
    print(json.dumps(claims_json(verdicts), indent=2) if options.json else markdown_table(claims_table(verdicts)))
    return 0


COMMANDS = {"run": run, "reproduce": reproduce, "inspect": inspect, "report": report, "claims": claims}


def _experiment(options: Any) -> ExperimentConfig:
    plain = options.as_dict()
    return experiment_from({f.name: plain[f.name] for f in dataclasses.fields(ExperimentConfig)})


if __name__ == "__main__":
    sys.exit(main())
