"""YAML that means what it says: the plain values of YAML 1.2's core schema, and each key only once.

PyYAML reads YAML 1.1, in which 0123 is 83, 1:30 is 90, 1_000 is 1000, no is false and 5e-4 is a text; and of a
repeated key it silently takes the last. All YAML in this project goes through this file.
"""

import re
from typing import Any, ClassVar

import yaml

ALIAS_LIMIT = 100  # in a file

_TAG = "tag:yaml.org,2002:"
# How each type is written, and the characters it can begin with. Ints come first: 1 is an int, not a float.
_CORE = {
    "null": (r"~|null|Null|NULL|", [*"~nN", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    "merge": (r"<<", ["<"]),
}


class Loader(yaml.SafeLoader):
    """Plain values only, each key once, and a limited number of aliases.

    A few lines of aliases within aliases can stand for gigabytes, or never end, so nested ones are refused.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        f"{_TAG}{kind}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{kind}"]
        for kind in ("null", "bool", "float", "str", "seq", "map")
    } | {None: yaml.SafeLoader.yaml_constructors[None]}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._aliases = 0
        self._anchors = 0  # around the node being read

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Like SafeLoader's, but refuse an alias inside an anchored node, and too many aliases."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._anchors or self._aliases > ALIAS_LIMIT:
                problem = f"an alias inside an anchored value, or more than {ALIAS_LIMIT} aliases; write the value out"
                raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
            return super().compose_node(parent, index)
        anchored = event.anchor is not None
        self._anchors += anchored
        node = super().compose_node(parent, index)
        self._anchors -= anchored
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Like SafeLoader's, but refuse a repeated key.

        Here and not where the mapping is built: by then, the keys that a merge key (<<) brings are among its own.
        """
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # not a valid key; refused later
            merge = key.tag == f"{_TAG}merge"
            name = key.value if merge else self.construct_object(key)
            if name in lines:
                problem = f"the key {name!r} is repeated, first at line {lines[name]}; keep one"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            lines[name] = key.start_mark.line + 1
        return node

    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        """A whole number: 0123 is 123; 0o17 is octal, 0x1f hexadecimal."""
        text = str(self.construct_scalar(node))
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class Dumper(yaml.SafeDumper):
    """Quotes any text that either version of YAML would read as something else."""


for _kind, (_pattern, _first) in _CORE.items():
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"(?:{_pattern})\\Z"), _first)
Loader.add_constructor(f"{_TAG}int", Loader.construct_core_int)


def load_yaml(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError: it is not YAML, or repeats a key; PyYAML raises other errors if a tag does not fit its value.
    """
    return yaml.load(text, Loader=Loader)  # noqa: S506 - a SafeLoader


def dump_yaml(content: Any) -> str:
    """Plain content as a YAML text, keys in their order."""
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)
