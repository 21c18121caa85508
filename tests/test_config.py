"""config.py and config_files.py: layering, validation, and the shipped files."""

import dataclasses
import itertools
import os
from pathlib import Path

import pytest
import yaml

from lora_study.base.errors import ConfigError
from lora_study.cli import main
from lora_study.commands import COMMANDS
from lora_study.config import ExperimentConfig, flatten, to_dict
from lora_study.config_differences import deviations
from lora_study.config_files import experiment_from, load_experiment, load_study, load_sweep, nested, overlay
from lora_study.flags import parse

CONFIGS = Path(__file__).parent.parent / "configs"
VARIANTS = sorted(CONFIGS.glob("variants/*/*.yaml"))
EXPERIMENTS = sorted([*CONFIGS.glob("reference/*.yaml"), *CONFIGS.glob("embedded/*.yaml"), *VARIANTS])
STUDIES = sorted(CONFIGS.glob("studies/*.yaml"))

# The fields in which a variant differs from the experiment it extends, beside its name.
CHANGED = {
    "reference/lora_default_deduplicated": {"data.deduplicate", "data.sizes.train"},  # train takes what is left
    "reference/lora_default_official": {"data.split", "data.sizes.train", "data.sizes.test"},
    "reference/lora_default_train_20000": {"data.sizes.train"},
    "embedded/lora_default_deduplicated": {"data.deduplicate"},
    "embedded/last_two_layers_live": {"train.cache_trunk"},
    "embedded/lora_default_free_shuffling": {"data.bucket_window"},
    "embedded/lora_default_attention_dropout": {"model.attention_dropout"},
} | {
    f"{kind}/{name}": fields
    for kind in ("reference", "embedded")
    for name, fields in {
        "lora_default_dropout_off": {"train.dropout_active"},
        "lora_default_head_trained": {"lora.train_head"},
        "lora_default_alpha_over_r": {"lora.scaling"},
        "lora_best_alpha_over_r": {"lora.scaling"},
        "lora_default_padded": {"data.padding"},
        "lora_default_drop_last": {"data.drop_last", "data.eval_batch_size"},
    }.items()
}


def test_there_are_configs_to_check():
    assert len(EXPERIMENTS) >= 10
    assert {path.stem for path in STUDIES} >= {"embedded", "reference"}
    assert {f"{path.parent.name}/{path.stem}" for path in VARIANTS} == set(CHANGED)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_experiment_resolves_and_survives_a_round_trip(path):
    config = load_experiment([path])
    assert experiment_from(to_dict(config)) == config
    assert path.stem in (config.name, "base")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_resolves(path):
    study, experiments = load_study(path)
    assert study.name == path.stem
    assert experiments
    if study.name in ("embedded", "reference"):
        assert [e.name for e in experiments] == ["last_two_layers", "lora_default", "lora_best", "full"]


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_variant_differs_from_its_base_in_the_stated_fields_alone(path):
    base = path.parent / yaml.safe_load(path.read_text())["extends"]
    assert path.stem.startswith(base.stem) and base.parent.name == path.parent.name
    ours, theirs = (flatten(to_dict(load_experiment([file]))) for file in (path, base))
    assert {field for field in ours if ours[field] != theirs[field]} == {
        "name",
        *CHANGED[f"{path.parent.name}/{path.stem}"],
    }


@pytest.mark.parametrize("kind", ["reference", "embedded"])
def test_a_sensitivity_study_has_every_variant_and_its_base_as_they_stand_in_their_files(kind):
    _, experiments = load_study(CONFIGS / "studies" / f"sensitivity_{kind}.yaml")
    variants = [path for path in VARIANTS if path.parent.name == kind]
    bases = {path.parent / yaml.safe_load(path.read_text())["extends"] for path in variants}
    files = {load_experiment([path]).name: load_experiment([path]) for path in (*bases, *variants)}
    assert {e.name: e for e in experiments} == files


def test_reference_configs_follow_the_article_but_for_two_stated_things():
    _, experiments = load_study(CONFIGS / "studies" / "reference.yaml")
    stated = [{deviation["field"] for deviation in deviations(experiment)} for experiment in experiments]
    assert stated == [{"data.padding", "data.drop_last"}] * 4, "masked padding is left out, and no review unscored"
    to_the_letter = [
        dataclasses.replace(e, data=dataclasses.replace(e.data, padding="max_length", drop_last=True))
        for e in experiments
    ]
    assert [deviations(experiment) for experiment in to_the_letter] == [[], [], [], []]


def test_embedded_configs_state_how_they_depart_from_the_article():
    for experiment in load_study(CONFIGS / "studies" / "embedded.yaml")[1]:
        fields = {deviation["field"] for deviation in deviations(experiment)}
        assert {"model.backbone", "data.source", "data.max_length", "model.attention_dropout"} <= fields


@pytest.mark.parametrize(
    ("study", "rows", "changed"),
    [
        ("full-embedded-encoder", "reference", {"model.backbone", "model.revision"}),
        (
            "medium-embedded-encoder",
            "embedded",
            {
                "data.source",
                "data.revision",
                "data.max_length",
                *(f"data.sizes.{part}" for part in ("train", "val", "test")),
            },
        ),
    ],
)
def test_a_larger_study_changes_the_rows_it_says_it_is_laid_over_in_the_stated_fields_alone(study, rows, changed):
    for experiment in load_study(CONFIGS / "studies" / f"{study}.yaml")[1]:
        name = experiment.name
        base = (
            CONFIGS / rows / f"{name}.yaml"
            if not name.endswith("head_trained")
            else CONFIGS / f"variants/{rows}/{name}.yaml"
        )
        ours, theirs = flatten(to_dict(experiment)), flatten(to_dict(load_experiment([base])))
        assert {field for field in ours if ours[field] != theirs[field]} == changed | {"train.keep_weights"}


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_later_files_win_over_earlier_ones_and_flags_over_files(tmp_path):
    first = write(tmp_path, "a.yaml", {"name": "a", "lora": {"r": 4, "alpha": 2.0, "targets": ["query", "key"]}})
    second = write(tmp_path, "b.yaml", {"lora": {"r": 5, "targets": ["mlp"]}})
    config = load_experiment([first, second])
    assert (config.name, config.lora.r, config.lora.alpha, config.lora.targets) == ("a", 5, 2.0, ("mlp",))
    config = parsed("--config", str(first), "--config", str(second), "--lora.alpha", "3")
    assert (config.name, config.lora.r, config.lora.alpha, config.lora.targets) == ("a", 5, 3.0, ("mlp",))


def parsed(*arguments):
    return parse(COMMANDS["inspect"], "lora-study inspect", arguments)["config"]


@pytest.mark.parametrize("flags", [["--lora.r", "2"], ["--lora.r=2"]])
@pytest.mark.parametrize("config", [["--config", "{}"], ["--config={}"]])
def test_flags_win_over_files_wherever_they_stand(tmp_path, flags, config):
    first = write(tmp_path, "a.yaml", {"name": "a", "seed": 3, "lora": {"r": 16, "alpha": 4}})
    second = write(tmp_path, "b.yaml", {"name": "b", "lora": {"r": 17}})
    a, b = ([word.format(path) for word in config] for path in (first, second))
    for arguments in ([*flags, *a, *b], [*a, *flags, *b], [*a, *b, *flags]):
        config_ = parsed(*arguments)
        assert (config_.name, config_.seed, config_.lora.r, config_.lora.alpha) == ("b", 3, 2, 4.0), arguments


@pytest.mark.parametrize(
    ("value", "targets"),
    [
        ("query,value,mlp", ("query", "value", "mlp")),
        ("key", ("key",)),
        ("[key, mlp]", ("key", "mlp")),
        ("attention.q_lin,*.lin1", ("attention.q_lin", "*.lin1")),
    ],
)
def test_a_list_can_be_given_with_commas_in_a_flag(value, targets):
    assert parsed("--lora.targets", value).lora.targets == targets
    assert parsed(f"--lora.targets={value}", "--seed", "2").lora.targets == targets


def test_a_dotted_name_in_a_file_is_told_how_to_be_written(tmp_path):
    for content, hint in (
        ({"train.epochs": 1}, r"train\.epochs .* train: \{epochs: "),
        ({"data": {"sizes.train": 4}}, r"data\.sizes\.train .* sizes: \{train: "),
    ):
        with pytest.raises(ConfigError, match=hint):
            load_experiment(write(tmp_path, "a.yaml", content))
    with pytest.raises(ConfigError, match=r"train: \{epochs: "):
        load_experiment(overrides={"train.epochs": 1})


def test_a_linked_file_finds_what_lies_beside_its_target_then_what_lies_beside_the_link(tmp_path):
    for folder in ("target", "link"):
        (tmp_path / folder).mkdir()
    for folder, files in {"target": {"x": 2, "y": 3}, "link": {"x": 20, "z": 40}}.items():
        for name, seed in files.items():
            write(tmp_path / folder, f"{name}.yaml", {"seed": seed})
    for name, seed in {"x": 2, "y": 3, "z": 40}.items():
        write(tmp_path / "target", "top.yaml", {"extends": f"{name}.yaml"})
        (tmp_path / "link" / "top.yaml").unlink(missing_ok=True)
        (tmp_path / "link" / "top.yaml").symlink_to(tmp_path / "target" / "top.yaml")
        assert load_experiment(tmp_path / "link" / "top.yaml").seed == seed
    content = {"name": "s", "title": "t", "experiments": ["y.yaml"], "overrides": {"extends": "x.yaml"}}
    (tmp_path / "link" / "study.yaml").symlink_to(write(tmp_path / "target", "study.yaml", content))
    assert load_study(tmp_path / "link" / "study.yaml")[1][0].seed == 2


def test_a_home_folder_is_found_wherever_a_path_can_stand(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "encoder").mkdir()
    write(tmp_path, "base.yaml", {"name": "base", "data": {"source": "~/reviews.csv", "cache_dir": "~/cache"}})
    (tmp_path / "elsewhere").mkdir()
    top = write(
        tmp_path / "elsewhere", "top.yaml", {"extends": "~/base.yaml", "model": {"backbone": "~/encoder"}, "seed": 4}
    )
    study = {"name": "s", "title": "t", "experiments": ["~/elsewhere/top.yaml"]}
    write(tmp_path / "elsewhere", "study.yaml", study)
    for config in (
        load_experiment(top),
        load_experiment("~/elsewhere/top.yaml"),
        parsed("--config=~/elsewhere/top.yaml"),
    ):
        assert (config.name, config.seed) == ("base", 4)
        assert config.data.source == str(tmp_path / "reviews.csv")
        assert config.data.cache_dir == str(tmp_path / "cache")
        assert config.model.backbone == str(tmp_path / "encoder")
    assert load_study("~/elsewhere/study.yaml")[1][0].seed == 4
    with pytest.raises(ConfigError, match="no such home folder"):
        load_experiment("~nobody-of-this-name/a.yaml")


def test_what_lies_in_this_folder_is_recorded_so_that_another_folder_finds_it(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    (tmp_path / "encoder").mkdir()
    (tmp_path / "reviews.csv").touch()
    monkeypatch.chdir(tmp_path)
    here = load_experiment(overrides={"model": {"backbone": "encoder"}, "data": {"source": "./reviews.csv"}})
    monkeypatch.chdir(tmp_path / "below")
    there = load_experiment(overrides={"model": {"backbone": "../encoder"}, "data": {"source": "../reviews.csv"}})
    assert here == there == experiment_from(to_dict(here))
    assert (here.model.backbone, here.data.source) == (str(tmp_path / "encoder"), str(tmp_path / "reviews.csv"))
    hub = load_experiment(overrides={"model": {"backbone": "some/encoder"}})
    assert (hub.model.backbone, hub.data.source) == ("some/encoder", "hub")
    for name in ("hub", "embedded"):
        Path(name).mkdir()
    named = load_experiment(overrides={"model": {"backbone": "embedded"}, "data": {"source": "hub"}})
    assert (named.model.backbone, named.data.source) == ("embedded", "hub")


def test_a_study_names_files_beside_the_file_that_names_them(tmp_path):
    for folder in ("lower", "upper"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "lower", "one.yaml", {"name": "one"})
    write(tmp_path / "lower", "over.yaml", {"train": {"epochs": 5}})
    lower = {"name": "s", "title": "t", "experiments": ["one.yaml", {"extends": "one.yaml", "name": "two"}]}
    write(tmp_path / "lower", "study.yaml", lower | {"overrides": {"extends": "over.yaml"}})
    top = write(tmp_path / "upper", "top.yaml", {"extends": "../lower/study.yaml", "seeds": [4]})
    study, experiments = load_study(top)
    assert study.seeds == (4,) and [(run.name, run.train.epochs) for run in experiments] == [("one", 5), ("two", 5)]
    sweep = {"name": "s", "title": "t", "experiment": "one.yaml", "parameters": {"lora.r": [1, 2]}}
    write(tmp_path / "lower", "sweep.yaml", sweep)
    swept, base = load_sweep(write(tmp_path / "upper", "swept.yaml", {"extends": "../lower/sweep.yaml"}))
    assert base.name == "one" and swept.experiment == "../lower/one.yaml"


def test_a_mistake_in_overrides_is_not_blamed_on_the_experiment(tmp_path):
    write(tmp_path, "e.yaml", {"name": "e"})
    content = {"name": "s", "title": "t", "experiments": ["e.yaml"], "overrides": {"train": {"epochs": 0}}}
    path = write(tmp_path, "study.yaml", content)
    with pytest.raises(ConfigError, match=rf"^study file {path}: overrides: train\.epochs: 0 is not valid"):
        load_study(path)
    write(tmp_path, "e.yaml", {"name": "e", "train": {"epochs": -1}})
    with pytest.raises(ConfigError, match=r"^\S+e\.yaml: train\.epochs: -1"):
        load_study(write(tmp_path, "study.yaml", content | {"overrides": {"mode": "full"}}))


def test_a_file_lies_over_the_files_it_extends(tmp_path):
    write(tmp_path, "base.yaml", {"name": "base", "train": {"epochs": 7, "learning_rate": 1e-3}})
    write(tmp_path, "other.yaml", {"train": {"learning_rate": 1e-2}, "seed": 9})
    top = write(tmp_path, "top.yaml", {"extends": ["base.yaml", "other.yaml"], "name": "top"})
    config = load_experiment([top])
    assert (config.name, config.seed, config.train.epochs, config.train.learning_rate) == ("top", 9, 7, 1e-2)


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    """YAML 1.1 reads 5e-4 as a string."""
    assert load_experiment([write(tmp_path, "a.yaml", "train: {learning_rate: 5e-4}")]).train.learning_rate == 5e-4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"lora": {"rank": 4}}, ["a.yaml", "lora.rank", "r, alpha"]),
        ({"lora": {"alhpa": 4}}, ["a.yaml", "lora.alhpa", "did you mean lora.alpha?"]),
        ({"data": {"sizes": {"tran": 4}}}, ["a.yaml", "data.sizes.tran", "data.sizes.train"]),
        ({"learning_rate": 4}, ["a.yaml", "learning_rate"]),
        ({"lora": {"r": "eight"}}, ["a.yaml", "lora.r", "eight", "use a whole number"]),
        ({"lora": {"r": 2.5}}, ["lora.r", "2.5", "use a whole number"]),
        ({"lora": 3}, ["a.yaml", "lora", "3"]),
        ({"lora": {"r": 0}}, ["lora.r", "0", "1 or more"]),
        ({"lora": {"alpha": -1}}, ["lora.alpha", "-1", "above 0"]),
        ({"lora": {"targets": []}}, ["lora.targets", "query"]),
        ({"lora": {"targets": "query"}}, ["lora.targets", "query"]),
        ({"lora": {"scaling": "r"}}, ["lora.scaling", "alpha/r"]),
        ({"mode": "adapter"}, ["mode", "adapter", "last_two_layers"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"name": "../../etc"}, ["name", "../../etc"]),
        ({"name": ""}, ["name"]),
        ({"model": {"dropout": 1.5}}, ["model.dropout", "1.5"]),
        ({"model": {"num_labels": 3}}, ["model.num_labels", "3", "leave it out"]),
        ({"data": {"sizes": {"val": 0}}}, ["data.sizes.val", "0"]),
        ({"data": {"max_length": 1024}}, ["data.max_length", "1024", "512"]),
        ({"data": {"batch_size": 0}}, ["data.batch_size", "0"]),
        ({"train": {"learning_rate": 0}}, ["train.learning_rate", "0"]),
        ({"train": {"schedule": "step"}}, ["train.schedule", "'step'", "constant, linear, cosine"]),
        ({"train": {"warmup": 100}}, ["train.warmup", "100", "share of the steps"]),
        ({"train": {"epochs": 0}}, ["train.epochs", "0"]),
        ({"train": {"cache_trunk": True}}, ["train.cache_trunk", "last_two_layers"]),
        ({"train": {"precision": "16-mixed", "accelerator": "cpu"}}, ["train.precision", "bf16-mixed"]),
        ({"partial": {"blocks": -1}}, ["partial.blocks", "-1"]),
        ({"partial": {"blocks": 1, "pre_classifier": False}}, ["partial.pre_classifier"]),
        ({"seeds": {"dropout": -1}}, ["seeds.dropout", "-1"]),
        ({"data": {"text_column": " "}}, ["data.text_column", "null"]),
        ({"data": {"source": "embedded", "label_column": "x"}}, ["data.label_column", "'embedded'", "null"]),
        ({"data": {"source": "a.csv", "text_column": "x", "label_column": "x"}}, ["data.label_column", "another"]),
        ({"data": {"labels": {"bad": 0, "good": 2}}}, ["data.labels", "{bad: 0, good: 1}"]),
        ({"data": {"labels": {"bad": 0}}}, ["data.labels", "{bad: 0, good: 1}"]),
        ({"data": {"labels": {"bad": 0, "good": 1, "none": None}}}, ["data.labels.none", "whole number"]),
        ({"data": {"labels": {"bad": 0, "good": "1"}}}, ["data.labels.good", "'1'", "whole number"]),
        ({"data": {"labels": {"bad": [0], "good": 1}}}, ["data.labels.bad", "[0]", "whole number"]),
        ("data: {labels: {true: 0, false: 1}}", ["data.labels", "in quotes"]),
        (
            {"data": {"drop_last": True, "eval_batch_size": 33, "sizes": {"val": 32}}},
            ["data.drop_last", "of val, 32 reviews", "data.eval_batch_size 33"],
        ),
        ({"data": {"padding": "longest"}}, ["data.padding", "max_length"]),
        ({"mode": "last_two_layers", "train": {"cache_trunk": True}, "data": {"drop_last": True}}, ["data.drop_last"]),
        ("lora: [", ["a.yaml", "line 1"]),
        ("just words", ["a.yaml", "mapping"]),
        ("", ["a.yaml", "mapping"]),
        ({"extends": "a.yaml"}, ["a.yaml", "extends itself"]),
        ({"extends": "nowhere.yaml"}, ["nowhere.yaml", "does not exist"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path, content, words):
    path = write(tmp_path, "a.yaml", content)
    with pytest.raises(ConfigError) as error:
        load_experiment([path])
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_labels_and_columns_are_no_departure_from_the_article_and_numbers_name_labels(tmp_path):
    content = {"data": {"text_column": "a", "label_column": "b", "labels": {1: 0, 5: 1}}}
    config = load_experiment(write(tmp_path, "a.yaml", {"data": {"source": "a.csv"} | content["data"]}))
    assert config.data.labels == {"1": 0, "5": 1}
    plain = load_experiment(write(tmp_path, "b.yaml", {"data": {"source": "a.csv"}}))
    assert deviations(config) == deviations(plain)


def test_names_of_labels_are_replaced_whole(tmp_path):
    below = write(tmp_path, "below.yaml", {"data": {"source": "a.csv", "labels": {"0": 0, "1": 1}}})
    above = {"data": {"labels": {"1": 0, "2": 1}}}
    assert load_experiment([below], above).data.labels == {"1": 0, "2": 1}


def test_only_what_comes_from_the_hub_has_a_revision(tmp_path):
    for backbone, source in ((str(tmp_path), "a.csv"), ("embedded", "embedded")):
        pinned = {"revision": "a" * 40}
        content = {"model": {"backbone": backbone} | pinned, "data": {"source": source} | pinned}
        local = load_experiment(overrides=content)
        assert (local.model.revision, local.data.revision) == (None, None)
    content = {"model": {"backbone": "some/encoder", "revision": "a"}, "data": {"source": "hub", "revision": "b"}}
    hub = load_experiment(overrides=content)
    assert (hub.model.revision, hub.data.revision) == ("a", "b")


def test_a_folder_whose_name_no_record_can_hold_is_said_where_it_is_found(tmp_path, monkeypatch):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    (folder / "encoder").mkdir(parents=True)
    (folder / "a.csv").touch()
    monkeypatch.chdir(folder)
    for content in ({"model": {"backbone": "encoder"}}, {"data": {"source": "a.csv"}}):
        with pytest.raises(ConfigError, match="not valid UTF-8"):
            load_experiment(overrides=content)


RETIRED = {"train.compile": (False, True), "model.num_labels": (2, 3)}


@pytest.mark.parametrize(("name", "values"), RETIRED.items())
def test_a_setting_that_is_gone_may_stand_in_a_saved_config_where_it_says_what_is_always_so(tmp_path, name, values):
    always, never = values
    path = write(tmp_path, "old.yaml", overlay({"seed": 2}, nested(name, always)))
    assert load_experiment(path) == parsed("--config", str(path)) == load_experiment(overrides={"seed": 2})
    path = write(tmp_path, "old.yaml", nested(name, never))
    with pytest.raises(ConfigError, match=rf"old.yaml: {name}: {never} is not valid; this setting is gone"):
        load_experiment(path)
    assert main(["inspect", "--config", str(path)]) == 2


def test_undecodable_and_missing_files_are_named(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"name: \xff\xfe")
    for name in ("bad.yaml", "missing.yaml", ""):
        with pytest.raises(ConfigError, match=str(tmp_path / name)):
            load_experiment([tmp_path / name])


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ({"name": "s", "title": "t", "experiments": []}, ["experiments"]),
        ({"name": "s", "title": "t", "experiments": ["e.yaml"], "seeds": []}, ["seeds"]),
        ({"name": "s", "title": "t", "experiments": ["e.yaml"], "seeds": [1, 1]}, ["seeds", "once"]),
        ({"name": "s", "title": "t", "experiments": ["e.yaml", "e.yaml"]}, ["own name"]),
        ({"name": "s", "title": "t", "experiments": [{"name": "a", "lora": {"q": 1}}]}, ["experiment a", "lora.q"]),
        ({"name": "s", "title": "t", "experiments": [{"extends": "none.yaml"}]}, ["none.yaml"]),
        ({"name": "s", "title": "t", "experiments": [3]}, ["experiments"]),
        ({"name": "s", "title": "t", "experiments": ["none.yaml"]}, ["none.yaml"]),
        ({"name": "s", "title": "t", "experiments": ["x" * 5000]}, ["xxx"]),
        ({"name": "s", "title": "t", "experiments": ["e.yaml"], "overrides": {"lora": {"q": 1}}}, ["lora.q"]),
        ({"name": "s", "title": "t", "experiments": ["e.yaml"], "overrides": {"seed": 5}}, ["overrides: seed: 5"]),
        ({"name": "s", "title": "t", "experiments": [{"name": "a", "seed": 5}]}, ["experiment a: seed", "under seeds"]),
        ({"name": "s", "experiments": ["e.yaml"]}, ["title"]),
        ({"name": "s", "title": "t", "experiments": ["e.yaml"], "sedes": [1]}, ["sedes", "seeds"]),
    ],
)
def test_a_mistake_in_a_study_is_named(tmp_path, study, words):
    write(tmp_path, "e.yaml", {"name": "e"})
    with pytest.raises(ConfigError) as error:
        load_study(write(tmp_path, "study.yaml", study))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_overrides_of_a_study_may_extend_a_file(tmp_path):
    write(tmp_path, "e.yaml", {"name": "e"})
    write(tmp_path, "small.yaml", {"train": {"epochs": 1, "threads": 2}})
    content = {
        "name": "s",
        "title": "t",
        "experiments": ["e.yaml"],
        "overrides": {"extends": "small.yaml", "mode": "full"},
    }
    (experiment,) = load_study(write(tmp_path, "study.yaml", content))[1]
    assert (experiment.train.epochs, experiment.train.threads, experiment.mode) == (1, 2, "full")


def test_overrides_of_a_study_reach_every_experiment(tmp_path):
    write(tmp_path, "e.yaml", {"name": "e"})
    write(tmp_path, "f.yaml", {"name": "f", "train": {"epochs": 2}})
    content = {"name": "s", "title": "t", "experiments": ["e.yaml", "f.yaml"], "overrides": {"train": {"epochs": 1}}}
    _, experiments = load_study(write(tmp_path, "study.yaml", content))
    assert [experiment.train.epochs for experiment in experiments] == [1, 1]


def test_a_study_writes_an_experiment_out_or_names_its_file(tmp_path):
    write(tmp_path, "e.yaml", {"name": "e", "lora": {"r": 4, "alpha": 3}})
    listed = ["e.yaml", {"extends": "e.yaml", "name": "f", "lora": {"r": 2}, "seeds": {"head_init": 7}}]
    content = {"name": "s", "title": "t", "experiments": listed, "overrides": {"train": {"epochs": 1}}}
    _, (e, f) = load_study(write(tmp_path, "study.yaml", content))
    assert (e.name, e.lora.r, e.lora.alpha, e.seeds.head_init, e.train.epochs) == ("e", 4, 3, None, 1)
    assert (f.name, f.lora.r, f.lora.alpha, f.seeds.head_init, f.train.epochs) == ("f", 2, 3, 7, 1)


def test_the_draws_form_a_latin_square():
    _, experiments = load_study(CONFIGS / "studies" / "draws-embedded-encoder.yaml")
    draws = [(e.seeds.head_init, e.seeds.lora_init, e.seeds.data_order) for e in experiments]
    for pair in itertools.combinations(range(3), 2):
        assert sorted(tuple(draw[i] for i in pair) for draw in draws) == list(itertools.product((1, 2, 3, 4), repeat=2))


def test_defaults_are_frozen():
    with pytest.raises(AttributeError):
        ExperimentConfig().seed = 2
