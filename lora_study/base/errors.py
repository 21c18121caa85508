"""A user's mistake, said in one line."""

import re


class ConfigError(ValueError):
    """A user's mistake in a config, a file or an argument; the message is the one line to show."""


def check(condition: bool, field_name: str, value: object, remedy: str) -> None:
    """Raise `ConfigError` naming the field, its value and what would be right, unless condition holds."""
    if not condition:
        raise ConfigError(f"{field_name}: {value!r} is not valid; {remedy}")


def one_line(error: object) -> str:
    """An error's message on one line that any terminal can show."""
    line = re.sub(r"\s+", " ", str(error)).strip()
    # It may quote an input: control characters move the cursor, and half a surrogate pair cannot be printed.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
