"""redaction.py: no secret of the environment or the command line reaches what a run or a report writes."""

import pytest

from lora_study.base.redaction import without_secrets
from lora_study.records.record import Record, read_record, run_dir, write_record
from lora_study.report import write_report
from lora_study.studies.launchers.worker import write_failed
from lora_study.training.experiment import run_experiment

HUB_TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
SECRETS = {
    "HF_TOKEN": "a-token-of-another-form",
    "AWS_SECRET_ACCESS_KEY": "wJalr/XUtnFEMI+K7MDENG",
    "DB_PASSWORD": "correct horse",
    "OPENAI_API_KEY": 'with "quotes" and \\',
}


@pytest.fixture
def secrets(monkeypatch) -> list[str]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return [*SECRETS.values(), HUB_TOKEN, "me:mine"]


def test_secrets_are_replaced_and_the_rest_of_a_text_stays(secrets):
    text = f"run --token {HUB_TOKEN} --data.source https://me:mine@host/imdb.csv with {' and '.join(SECRETS.values())}."
    masked = without_secrets(text)
    assert not [secret for secret in secrets if secret in masked]
    assert masked == "run --token *** --data.source https://***@host/imdb.csv with *** and *** and *** and ***."


def test_a_secret_that_holds_another_leaves_no_rest(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "abcdef")
    monkeypatch.setenv("B_TOKEN", "abcdef-ghijkl")
    assert without_secrets("abcdef-ghijkl") == "***"


@pytest.mark.parametrize(
    ("name", "value"), [("USE_TOKEN", "1"), ("HOME", "/home/someone"), ("TOKENIZERS_PARALLELISM", "enabled")]
)
def test_what_is_no_secret_stays(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    text = f"lora-study run --config configs/embedded/full.yaml --seed {value}"
    assert without_secrets(text) == text


def test_a_failed_record_does_not_quote_secrets(secrets, tmp_path):
    record = Record(name="full", mode="full", seed=1, status="failed", error=f"no access with {SECRETS['HF_TOKEN']}")
    assert read_record(write_record(record, tmp_path)).error == "no access with ***"


def test_a_secret_that_a_setting_holds_is_not_written_either(secrets, tiny, tmp_path):
    config = tiny("lora", data={"source": "https://me:mine@host/imdb.csv"})
    path = run_dir(tmp_path, "lora", 1) / "record.json"
    assert write_failed(config, tmp_path, "command", "no such file").status == "failed"
    record = read_record(path)
    assert record.config["data"]["source"] == "https://***@host/imdb.csv"
    assert "me:mine" not in path.read_text()


def test_no_file_of_a_run_or_its_report_holds_a_secret(secrets, tiny, tmp_path):
    command = f"lora-study run --a {HUB_TOKEN} --b https://me:mine@host " + " ".join(SECRETS.values())
    run_experiment(tiny("lora"), tmp_path, command=command)
    write_report(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"record.json", "predictions.parquet", "report.md", "report.html"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], path
