"""plain_yaml.py: values are what they say, and no key stands twice, in every file and flag."""

import pytest
import yaml

from lora_study.base.errors import ConfigError
from lora_study.base.plain_yaml import dump_yaml, load_yaml
from lora_study.cli import main
from lora_study.config_files import load_experiment, load_study, load_sweep
from lora_study.evidence.claims import load_claims


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0123", 123),
        ("-7", -7),
        ("0o17", 15),
        ("0x1F", 31),
        ("5e-4", 0.0005),
        ("1e5", 100000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2020-01-01", "2020-01-01"),
        ("=", "="),
        *((word, word) for word in ("yes", "No", "on", "OFF", "y", "n")),
        ("True", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("'0123'", "0123"),
    ],
)
def test_a_value_is_what_it_says(text, value):
    found = load_yaml(f"key: {text}")["key"]
    assert found == value and type(found) is type(value)


def test_what_is_written_is_read_as_it_was_by_either_version_of_yaml():
    values = ["1e5", "0o17", "1:30", "yes", "0123", "~", "", "1_000", "<<", "2020-01-01", 1e-5, 1e20, 3, None, True]
    for read in (load_yaml, yaml.safe_load):
        assert read(dump_yaml({"values": values[:10]})) == {"values": values[:10]}
    assert load_yaml(dump_yaml({"values": values})) == {"values": values}


@pytest.mark.parametrize(
    ("text", "key", "line", "first"),
    [
        ("train: {epochs: 5}\nname: a\ntrain: {threads: 1}", "'train'", 3, 1),
        ("train:\n  epochs: 5\n  threads: 1\n  epochs: 6", "'epochs'", 4, 2),
        ("a: 1\n'a': 2", "'a'", 2, 1),
        ("list:\n- {b: 1,\n   b: 1}", "'b'", 3, 2),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  <<: *x", "'<<'", 4, 3),
        ("x: &x {a: 1,\n a: 2}\ny: {<<: *x}", "'a'", 2, 1),
        ("1: a\n01: b", "1", 2, 1),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_lines(tmp_path, text, key, line, first):
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    for load in (load_experiment, load_study, load_sweep, load_claims):
        with pytest.raises(ConfigError) as error:
            load(path)
        message = str(error.value)
        assert f"{path} is not YAML at line {line}: the key {key} is repeated, first at line {first}" in message


def test_a_key_over_a_merged_one_is_no_second_key():
    content = load_yaml("x: &x {a: 1, b: 1}\ny: {<<: *x, a: 2}\nz: {<<: [*x, *x], c: 3}")
    assert content["y"] == {"a": 2, "b": 1}
    assert content["z"] == {"a": 1, "b": 1, "c": 3}


def test_a_type_that_no_config_has_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("name: !!timestamp 2020-01-01")
    with pytest.raises(ConfigError, match=r"line 1.*timestamp"):
        load_experiment(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "--seed", "1:30"],
        ["inspect", "--seed", "1_000"],
        ["inspect", "--lora.alpha", "1:30"],
        ["inspect", "--train.fast", "yes"],
        ["inspect", "--train.threads", "1:30"],
        ["reproduce", "--study", "s.yaml", "--seeds", "1_0"],
        ["inspect", "--lora", "{r: 1, r: 2}"],
        ["inspect", "--config", "{r: 1, r: 2}"],
    ],
)
def test_flags_are_read_by_the_same_rules(capsys, arguments):
    """A flag's library has a loader of YAML 1.1; see config_files.py."""
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_flags_that_look_like_something_else_are_what_they_say(capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "--seed", "0123", "--name", "no", "--model.revision", "0123", "--print_config"])
    printed = load_yaml(capsys.readouterr().out)
    assert (printed["seed"], printed["name"], printed["model"]["revision"]) == (123, "no", "0123")
