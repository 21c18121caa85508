"""Reviews from tables: the one reader of what is trained on and of what is predicted.

It finds the columns, checks each value, and says in which row and line a faulty one stands.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lora_study.base.errors import ConfigError
from lora_study.config import DataConfig
from lora_study.data.labels import Labels
from lora_study.data.tables import OPTIONAL, Table, quoted

TEXT_NAMES = ("text", "review", "sentence", "content", "comment", "review_text")
LABEL_NAMES = ("label", "labels", "sentiment", "class", "target", "polarity")
# Which of the two splits of a study the splits of a data set belong to; unlabelled reviews belong to none.
SPLITS = {"train": "train", "validation": "train", "valid": "train", "val": "train", "dev": "train", "test": "test"}


class Review(NamedTuple):
    """A review.

    Attributes:
        id: Its id, or where it stands: the row of a table (from 1, without the header), the line of a text.
        text: What it says.
        label: 0 negative, 1 positive; None where labels are not read.
        split: The official split, "train" or "test"; None where it is not known.
    """

    id: str
    text: str
    label: int | None = None
    split: str | None = None


@dataclass(frozen=True)
class Column:
    """A column that must be there.

    Attributes:
        setting: Where the user can name it, for errors.
        names: Names it is known by, in capitals or not; only looked for where the user has named none.
        given: Its name, as the user gives it.
        likely: What it is called where the model was trained; taken where it is there and the user has named none.
    """

    setting: str
    names: tuple[str, ...]
    given: str | None = None
    likely: str | None = None

    def find(self, table: Table) -> str:
        """Its name in a table.

        Raises:
            ConfigError: there is none, or more than one that it could be.
        """
        columns = table.columns or []
        wanted = (self.given or self.likely or "").strip()
        found = [name for name in columns if wanted and name == wanted]
        if not found and not self.given:
            found = [name for name in columns if name.casefold() in self.names]
        if not found:
            wanted = repr(self.given or self.names[0])
            raise ConfigError(
                f"{table.name} has no column {wanted}, only {quoted(columns)}; name the right one with {self.setting}"
            )
        if len(set(found)) > 1:
            raise ConfigError(
                f"{table.name} has columns {quoted(found)}: any of them could be meant; name one with {self.setting}"
            )
        if len(found) > 1:
            raise ConfigError(f"{table.name} has {len(found)} columns called {found[0]!r}; rename all but one")
        return found[0]


def labelled(tables: Iterable[Table], config: DataConfig) -> Iterator[Review]:
    """The reviews of tables with their labels.

    Raises:
        ConfigError: a column is missing or could be one of several, or a review has no text, no id, a label that is
            not understood, or another split than train and test.
    """
    text = Column("data.text_column", TEXT_NAMES, config.text_column)
    label = Column("data.label_column", LABEL_NAMES, config.label_column)
    return _reviews(tables, text, label, Labels(config.labels))


def unlabelled(tables: Iterable[Table], text_column: str | None, likely: str | None) -> Iterator[Review]:
    """The reviews of tables, whose labels are not read if there are any; errors as in `labelled`."""
    return _reviews(tables, Column("--text-column", TEXT_NAMES, text_column, likely), None, Labels())


def _reviews(tables: Iterable[Table], text: Column, label: Column | None, labels: Labels) -> Iterator[Review]:
    count: Counter[str | None] = Counter()  # reviews of each split so far
    for table in tables:
        if table.columns is None:  # without rows
            continue
        used = {"text": text.find(table)}
        if label:
            used["label"] = label.find(table)
            if used["text"] == used["label"]:
                both = f"{table.name}: column {used['text']!r} would be both text and label"
                raise ConfigError(f"{both}; name one with {label.setting}, and the other with {text.setting}")
        for name in OPTIONAL if label else ("id",):
            if any(column.casefold() == name for column in table.columns):
                used[name] = Column("another name", (name,), likely=name).find(table)
        for number, (line, values) in enumerate(table.rows(list(used.values())), start=1):
            row = dict(zip(used, values, strict=True))
            try:
                review = Review(
                    name_of(row["id"] if "id" in row else _place_in_split(table.split, count)),
                    text_of(row["text"]),
                    labels.read(row["label"], table.classes.get(used["label"])) if label else None,
                    split_of(row["split"] if "split" in row else SPLITS.get(table.split or "")),
                )
            except ValueError as error:
                place = f"{table.name}, line {line}" if line else table.name
                own = f" (id {row['id']!r:.80})" if row.get("id") is not None else ""
                raise ConfigError(f"{place}: row {number}{own}{error}") from error
            count[table.split] += 1
            yield review


def _place_in_split(split: str | None, count: Mapping[str | None, int]) -> str:
    """The id of the next review that has none: as of the hub where it is of a split, else its row."""
    return str(count[None] + 1) if split is None else f"{split}/{count[split]}"


# Messages about a value are worded so that they can follow the row's name.


def name_of(value: Any) -> str:
    """An id as a string."""
    if isinstance(value, bytes):
        raise ValueError(f": id {value!r:.80} is not a text; store it as one, or leave the column out")
    if value is None or value != value or not str(value).strip():  # NaN is not equal to itself
        raise ValueError(" has no id; give every review one, or leave the column out")
    return _encodable(str(value), "id")


def text_of(value: Any) -> str:
    """A review's text, which must have a character to read and be encodable."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(" has no text; remove the row or fill it in")
    if not isinstance(value, str):
        raise ValueError(f": text {value!r:.80} is not a string")
    return _encodable(value, "text")


def _encodable(value: str, what: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f": {what} has half a surrogate pair at character {error.start}; repair it") from error
    return value


def split_of(value: Any) -> str | None:
    """An official split, or None for an empty one."""
    key = value.strip().lower() if isinstance(value, str) else value
    if key in ("train", "test"):
        return str(key)
    if key is None or key == "":
        return None
    raise ValueError(f": split {value!r:.80} is not understood; use train or test, or leave it empty")
