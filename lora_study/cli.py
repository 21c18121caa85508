"""The command line: arguments to the call of a command, and a mistake to one line.

Exit status 0 done, 1 a run failed, 2 a user's mistake in one line, 130 interrupted by Ctrl-C or SIGTERM.
"""

import errno
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from lora_study.base import interrupts, streams
from lora_study.base.errors import ConfigError, one_line
from lora_study.base.torch_environment import set_torch_environment
from lora_study.commands import COMMANDS
from lora_study.flags import Parser, parse, short_help
from lora_study.training.places import check_environment

DESCRIPTION = "LoRA, last-two-layers and full fine-tuning of DistilBERT on IMDb reviews."
GOES_ON = {  # what to type after Ctrl-C
    "run": "the same command with --resume goes on after the last finished epoch",
    "reproduce": "finished runs are kept, and the same command goes on",
    "sweep": "finished runs are kept, and the same command goes on",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    set_torch_environment()  # before anything loads torch
    streams.make_usable()
    arguments = list(sys.argv[1:] if argv is None else argv)
    end = arguments.index("--") if "--" in arguments else len(arguments)  # texts follow
    debug = "--debug" in arguments[:end]
    arguments = [argument for argument in arguments[:end] if argument != "--debug"] + arguments[end:]
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if not debug:  # or torch prints pages of addresses if one of several processes ends before another
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with interrupts.handled("lora-study: interrupted"):
        return _run_command(arguments, debug)


def _run_command(arguments: list[str], debug: bool) -> int:
    """Parse and call; a mistake is one line."""
    try:
        return _call(arguments)
    except BrokenPipeError:  # whoever read our output, such as head, has seen enough
        streams.drop_output()
        return 0
    except (ConfigError, OSError) as error:  # a full disk, a folder that vanished: a traceback would say no more
        if debug:
            raise
        print(f"lora-study: error: {one_line(error)}", file=sys.stderr)
        too_long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG  # which no machine would take
        return 2 if too_long or isinstance(error, ConfigError) else 1


def _call(arguments: list[str]) -> int:
    """Parse and call."""
    try:
        check_environment()
        name = _command(arguments)
        if name is None:
            return 0
        if advice := GOES_ON.get(name):
            speaks = os.environ.get("RANK", "0") == "0"  # one of several processes speaks for all
            interrupts.say(f"lora-study: interrupted; {advice}" if speaks else "")
        values = parse(COMMANDS[name], f"lora-study {name}", arguments[1:])
        if "RANK" in os.environ and name in ("reproduce", "sweep"):
            raise ConfigError(f"{name} starts the processes of its runs itself; start it without torchrun")
        return COMMANDS[name](**values)
    finally:
        streams.flush()


def _command(arguments: Sequence[str]) -> str | None:
    """The command that the arguments begin with; None if there is none, and help is printed."""
    if arguments and arguments[0] in COMMANDS:
        return arguments[0]
    parser = Parser(prog="lora-study", description=DESCRIPTION)
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {_version()}", help="Print the version and exit."
    )
    parser.add_argument("--debug", action="store_true", help="Show tracebacks and debug messages.")
    commands = parser.add_subparsers(title="commands; each takes --help", metavar="COMMAND", dest="command")
    for name, function in COMMANDS.items():
        commands.add_parser(name, help=short_help(function))
    parser.parse_args(arguments)
    parser.print_help()
    return None


def _version() -> str:
    try:
        return version("lora-study")
    except PackageNotFoundError:  # a checkout on PYTHONPATH
        return "(not installed)"
