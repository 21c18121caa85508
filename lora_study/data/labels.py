"""What a label of a table says: class 0, negative, or class 1, positive.

Names decide if there are any: in a table with names for its class numbers (the ClassLabel of Hugging Face's datasets)
a number is first read as its name, since some tables count positive first.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_study.base.errors import ConfigError

# Each pair is a way of writing the two classes; a source must stick to one.
PAIRS = (("0", "1"), ("false", "true"), ("neg", "pos"), ("negative", "positive"))
MEANING = {word: (pair, label) for pair in PAIRS for label, word in enumerate(pair)}
REMEDY = "data.labels says what other names mean, as in {bad: 0, good: 1}"


class Labels:
    """Reads the labels of a source one after the other.

    Args:
        given: What each label means, 0 or 1, according to the user; None understands the `PAIRS`.

    Raises:
        ConfigError: two of the given labels are the same.
    """

    def __init__(self, given: Mapping[str, int] | None = None) -> None:
        self._given = None if given is None else {plain(label): meaning for label, meaning in given.items()}
        if given is not None and len(given) != len(self._given or {}):
            raise ConfigError(f"data.labels: {given!r} is not valid; name each label once, in capitals or not")
        self._first: Any = None
        self._pair: tuple[Any, ...] | None = None

    def read(self, value: Any, names: Sequence[str] | None = None) -> int:
        """A label as 0 or 1.

        Args:
            value: The label as the table holds it.
            names: The table's own names of the class numbers, if it has any.

        Raises:
            ValueError: it is not understood, or not written as those before it; the message can follow the row's
                name.
        """
        if value is None or (isinstance(value, str) and not value.strip()) or value != value:  # NaN is never itself
            raise ValueError(f": label {value!r} is empty; leave the row out or fill it in")
        if names and (type(value) is int or (isinstance(value, float) and value.is_integer())):
            if not 0 <= value < len(names):
                raise ValueError(f": label {value} is not among the table's classes ({_listed(names)}): unlabelled")
            value = names[int(value)]
        word = plain(value)
        if self._given is not None:
            if word in self._given:
                return self._given[word]
            raise ValueError(f": label {value!r:.80} is not one of those in data.labels ({_listed(self._given)})")
        if word not in MEANING:
            unlabelled = "; -1 stands for unlabelled in many tables: leave such rows out" if word == "-1" else ""
            raise ValueError(
                f": label {value!r:.80} is not understood: there are two classes, 0, neg or negative"
                f" and 1, pos or positive; {REMEDY}{unlabelled}"
            )
        pair, label = MEANING[word]
        if self._pair is None:
            self._pair, self._first = (pair, type(value) is str), value
        elif self._pair != (pair, type(value) is str):
            raise ValueError(
                f": label {value!r:.80} stands among labels such as {self._first!r:.80}; write all in one way, or say"
                " what each means with data.labels"
            )
        return label


def plain(value: Any) -> str:
    """A label without what does not change its meaning: capitals, surrounding space, the .0 of a whole number."""
    return re.sub(r"(?<=\d)\.0+$", "", str(value).strip().casefold())


def _listed(names: Any) -> str:
    return ", ".join(f"{name!r:.40}" for name in list(names)[:6]) + (", ..." if len(names) > 6 else "")
