"""The package as other code imports it."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import lora_study
from lora_study import ExperimentConfig, load_experiment, read_records, run


def test_importing_the_package_loads_neither_torch_nor_anything_else_that_is_slow():
    code = "import sys, lora_study; dir(lora_study); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "lora_study" in loaded
    assert not {"torch", "transformers", "lightning", "pandas", "numpy", "yaml"} & set(loaded)


def test_configs_records_claims_and_reports_need_neither_torch_nor_pyplot():
    code = """
import sys, lora_study.config_files, lora_study.records, lora_study.evidence.claims, lora_study.report
from lora_study import ConfigError, ExperimentConfig, ModelConfig, Record, load_experiment, read_records
print({"torch", "matplotlib.pyplot"} & set(sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_every_name_is_there_documented_and_listed():
    assert len(lora_study.__all__) == len(set(lora_study.__all__)) > 20
    for name in lora_study.__all__:
        exported = getattr(lora_study, name)
        assert inspect.isclass(exported) or inspect.isfunction(exported), name
        assert exported.__name__ == name
        assert inspect.getdoc(exported), name
    assert set(lora_study.__all__) <= set(dir(lora_study))


def test_no_module_hides_a_name_whatever_was_imported_before():
    """Importing a submodule sets it as an attribute of the package."""
    for module in pkgutil.iter_modules(lora_study.__path__):
        if not module.name.startswith("__"):
            importlib.import_module(f"lora_study.{module.name}")
    assert not {name for name in lora_study.__all__ if inspect.ismodule(getattr(lora_study, name))}


def test_type_checkers_see_the_same_names():
    """They read the imports under TYPE_CHECKING, which never run."""
    tree = ast.parse(Path(lora_study.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lora_study.")
        for alias in node.names
    }
    assert seen.keys() == set(lora_study.__all__) - {"run"}
    for name, module in seen.items():
        assert getattr(lora_study, name) is getattr(importlib.import_module(module), name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'lora_study' has no attribute 'inject_lorra'"):
        lora_study.inject_lorra  # noqa: B018
    with pytest.raises(ImportError):
        from lora_study import inject_lorra  # noqa: F401


def test_an_experiment_is_run_and_read_back(tiny_backbone, reviews_csv, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"name: mine\nmodel: {{backbone: {tiny_backbone}}}\n"
        f"lora: {{r: 2, alpha: 1, variant: dora, lr_ratio: 4}}\n"
        f"data: {{source: {reviews_csv}, sizes: {{train: 64, val: 20, test: 40}}, max_length: 32, "
        f"cache_dir: {tmp_path / 'cache'}}}\n"
        "train: {epochs: 1, precision: 32-true, accelerator: cpu, threads: 1, learning_rate: 0.01}\n"
    )
    config = load_experiment([str(file)])
    assert isinstance(config, ExperimentConfig)
    record = run(config, str(tmp_path / "results"))
    assert record.status == "completed", record.error
    assert record.parameters["lora"] == 2 * 2 * (2 * (32 + 32) + 32)
    assert {"lora.variant", "lora.lr_ratio"} <= {deviation["field"] for deviation in record.deviations}
    assert run(config, tmp_path / "results") == record, "what is done is not done again"
    assert read_records(tmp_path / "results") == ([record], [])
    trained = lora_study.load_run(tmp_path / "results" / "mine" / "seed-1")
    assert {type(layer) for _, layer in lora_study.lora_layers(trained.model)} == {lora_study.LinearWithDoRA}
