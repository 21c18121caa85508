"""inference.py and data/stream.py: every review gets what the model says, in order; a faulty one gets one line."""

import csv
import io
import itertools
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fabricate_run import MAX_LENGTH, finished_run

from lora_study.base.errors import ConfigError
from lora_study.cli import main
from lora_study.lora import lora_layers
from lora_study.sharing import predict as module
from lora_study.sharing.predict import predict, prepare
from lora_study.sharing.trained import load_run


@pytest.fixture(scope="module")
def run(tiny_backbone, reviews_csv, tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("results"), tiny_backbone, reviews_csv)


@pytest.fixture(scope="module")
def texts(reviews_csv) -> list[str]:
    """Reviews of many lengths."""
    reviews = pd.read_csv(reviews_csv)["text"].tolist()
    return [" ".join(text.split()[: 3 + number % 38]) for number, text in enumerate(reviews[:50])]


@pytest.fixture
def classify(run, capsys):
    """Runs the command; returns its exit status, the rows it printed and its words on stderr."""

    def call(*arguments: str) -> tuple[int, list[dict[str, str]], str]:
        status = main(["predict", "--run", str(run), *arguments])
        printed = capsys.readouterr()
        return status, list(csv.DictReader(io.StringIO(printed.out))), printed.err

    return call


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Make a content the standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def numbers(predictions) -> np.ndarray:
    return np.array([prediction.probability for prediction in predictions])


def test_the_runs_test_reviews_get_the_runs_own_predictions(run, reviews_csv):
    """Both of the model as trained and of the model prepared to be fast."""
    said = pd.read_parquet(run / "predictions.parquet")
    reviews = pd.read_csv(reviews_csv)["text"]
    texts = [reviews[int(row) - 1] for row in said["id"]]  # ids are rows, counted from 1
    trained = load_run(run)
    for _ in ("as trained", "prepared"):
        predictions = list(predict(trained, texts))
        np.testing.assert_allclose(numbers(predictions), said["probability"], atol=1e-5)
        assert [one.label == "positive" for one in predictions] == (said["probability"] > 0.5).tolist()
        prepare(trained)
    assert not list(lora_layers(trained.model))
    assert said["probability"].gt(0.5).nunique() == 2


def test_neither_batches_nor_chunks_nor_other_reviews_change_a_prediction(run, texts, monkeypatch):
    trained = load_run(run)
    expected = numbers(predict(trained, texts))
    alone = numbers(next(predict(trained, [text])) for text in texts)
    np.testing.assert_allclose(alone, expected, atol=1e-6)
    monkeypatch.setattr(module, "CHUNK", 7)
    np.testing.assert_allclose(numbers(predict(trained, iter(texts), batch_size=3)), expected, atol=1e-6)


def test_a_stream_without_end_is_read_as_it_is_needed(run, texts, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    read = 0

    def endless():
        nonlocal read
        for text in itertools.cycle(texts):
            read += 1
            yield text

    assert len(list(itertools.islice(predict(load_run(run), endless()), 20))) == 20
    assert read == 24


def test_a_model_that_has_predicted_is_as_it_was(run, texts):
    trained = load_run(run)
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    ids = torch.arange(5, 15).view(1, 10)
    hidden = trained.model.distilbert(ids).last_hidden_state
    list(predict(trained, texts))
    assert all(torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())
    torch.testing.assert_close(trained.model.distilbert(ids).last_hidden_state, hidden, rtol=0, atol=0)


def test_bf16_says_nearly_the_same(run, texts):
    exact, rounded = load_run(run), load_run(run)
    prepare(rounded, "bf16-true")
    assert {parameter.dtype for parameter in rounded.model.parameters()} == {torch.bfloat16}
    difference = abs(numbers(predict(exact, texts)) - numbers(predict(rounded, texts)))
    assert 0 < difference.max() < 0.05


@pytest.mark.parametrize(
    "texts",
    [
        "a wonderful film",
        {"a wonderful film": 1},
        pd.DataFrame({"text": ["a wonderful film"]}),
        [("good", "bad film")],  # which a tokenizer would read as a pair
        ["good", None],
    ],
)
def test_what_is_no_list_of_texts_is_refused(run, texts):
    with pytest.raises(TypeError, match="pass a list of texts"):
        next(predict(load_run(run), texts))


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_batch_of_no_size_is_refused(run, size):
    with pytest.raises(ConfigError, match=rf"batch_size: {size} is not valid; use 1 or more"):
        next(predict(load_run(run), ["good"], batch_size=size))


def test_a_precision_that_is_none_is_refused_before_anything_is_merged(run):
    trained = load_run(run)
    with pytest.raises(ConfigError, match="precision: 'bf16-mixed' is not valid; use 32-true, bf16-true, auto"):
        prepare(trained, "bf16-mixed")
    assert list(lora_layers(trained.model))


def test_texts_on_the_command_line(run, classify, texts):
    status, rows, err = classify("null", texts[0], "[1, 2]")
    assert (status, err) == (0, "")
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    expected = list(predict(load_run(run), ["null", texts[0], "[1, 2]"]))
    assert [row["label"] for row in rows] == [one.label for one in expected]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], numbers(expected), atol=1e-6)


def test_long_texts_are_cut_and_counted(classify):
    status, rows, err = classify("good film", "good " * 100_000)
    assert (status, len(rows)) == (0, 2)
    assert "2 reviews in " in err
    assert f"1 cut to {MAX_LENGTH} tokens" in err


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt", "-"])
def test_every_kind_of_file_gives_the_same(run, classify, texts, tmp_path, monkeypatch, suffix):
    path = tmp_path / f"reviews{suffix}"
    table = pd.DataFrame({"extra": 1, "text": texts, "id": [f"näm{row}" for row in range(len(texts))]})
    ids = table["id"].tolist()
    if suffix == ".csv":
        table.to_csv(path, index=False)
    elif suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        ids = [str(2 * line) for line in range(1, len(texts) + 1)]
        content = "".join(f"\n{text}\r\n" for text in texts).encode("utf-8-sig")
        if suffix == "-":
            pipe(monkeypatch, content)
            path = Path("-")
        else:
            path.write_bytes(content)
    status, rows, err = classify("--file", str(path))
    assert status == 0
    assert "50 reviews in" in err
    assert [row["id"] for row in rows] == ids
    expected = numbers(predict(load_run(run), texts))
    np.testing.assert_allclose([float(row["probability"]) for row in rows], expected, atol=2e-6)


@pytest.mark.parametrize("name", ["said.csv", "said.jsonl"])
def test_output_goes_into_a_file_whole(classify, texts, tmp_path, name):
    (tmp_path / "reviews.txt").write_text("\n".join(texts))
    output = tmp_path / "deep" / name
    _, printed, _ = classify("--file", str(tmp_path / "reviews.txt"))
    status, rows, _ = classify("--file", str(tmp_path / "reviews.txt"), "--output", str(output))
    assert (status, rows) == (0, [])
    if name.endswith(".csv"):
        assert list(csv.DictReader(io.StringIO(output.read_text()))) == printed
    else:
        found = [json.loads(line) for line in output.read_text().splitlines()]
        assert [{key: str(value) for key, value in row.items()} for row in found] == printed
        assert isinstance(found[0]["probability"], float)
    assert [path.name for path in output.parent.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.csv", b"opinion\ngood\n", ["no column 'text', only 'opinion'", "--text-column"]),
        ("r.csv", b"text\ngood\n\xe9t\xe9\n", ["not UTF-8", "line 3", "0xe9", "save it as UTF-8"]),
        ("r.csv", "text\ngood\n".encode("utf-16"), ["not UTF-8", "line 1"]),
        ("r.csv", "text\ngood\n".encode("utf-16-le"), ["line 1", "NUL"]),
        ("r.csv", b"text,stars\ngood,5\nbad\n", ["row 2 (line 3) has 1 fields", "header has 2"]),
        ("r.csv", b"text,id\ngood,a\nbad,\n", ["row 2", "no id"]),
        ("r.jsonl", b'{"text": "good"}\n{"text": \n', ["line 2", "not JSON"]),
        ("r.jsonl", b'{"text": "good", "id": "\\ud83d"}\n', ["row 1", "id", "surrogate"]),
        ("r.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", ["line 1", "not JSON"]),
        ("r.txt", b"good\n\x1f\x8b\x08\x00\n", ["not UTF-8", "line 2"]),
        ("r.txt", b"good\n\x00\x01\x02\n", ["line 2", "NUL"]),
        ("r.xlsx", b"", [".csv, .tsv, .jsonl, .ndjson, .parquet, .txt"]),
    ],
)
def test_a_faulty_file_is_refused_in_one_line_and_writes_nothing(classify, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    status, rows, err = classify("--file", str(tmp_path / name), "--output", str(tmp_path / "out" / "said.csv"))
    assert (status, rows, err.count("\n")) == (2, [], 1)
    assert all(word in err for word in [str(tmp_path / name), *words]), err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["texts or a --file"]),
        (["good", "--file", "r.csv"], ["texts or a --file"]),
        (["good", " "], ["review 2", "no text"]),
        (["--file", "nowhere.csv"], ["nowhere.csv", "No such file"]),
        (["--file", "folder.csv"], ["folder.csv", "directory"]),
        (["good", "--output", "said.xlsx"], ["--output", "said.xlsx", ".csv or .jsonl"]),
        (["good", "--output", "folder.csv"], ["--output", "folder"]),
        (["good", "--output", "r.csv/deep/said.csv"], ["--output", "r.csv", "no folder to write into"]),
        (["--file", "r.csv", "--output", "./r.csv"], ["--output", "file of the reviews"]),
        (["good", "--precision", "16-mixed"], ["precision", "bf16-true"]),
        (["good", "--run", "nowhere"], ["--run is given twice"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(classify, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "r.csv").write_text("text\ngood\n")
    status, rows, err = classify(*arguments)
    assert (status, rows, err.count("\n")) == (2, [], 1)
    assert all(word in err for word in words), err
    assert (tmp_path / "r.csv").read_text() == "text\ngood\n"


def test_what_was_printed_before_a_faulty_line_stays(classify, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    pipe(monkeypatch, b"good film\n" * 9 + b"caf\xe9\n")
    status, rows, err = classify("--file", "-")
    assert status == 2
    assert [row["id"] for row in rows] == [str(line) for line in range(1, 10)]
    assert "standard input is not UTF-8" in err
    assert "line 10" in err and "the 9 reviews before it are classified" in err


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz", "r.jsonl", "r.txt", "r.parquet"])
def test_a_bad_row_at_the_end_is_found_before_the_model_is_loaded(classify, tmp_path, monkeypatch, name):
    monkeypatch.delattr("lora_study.model.encoder.build_model")
    texts = ["good film"] * 3000 + [" "]
    frame = pd.DataFrame({"text": texts, "stars": 1})
    words = ["row 3001", "no text"]
    if name == "r.parquet":
        frame.to_parquet(tmp_path / name)
    elif name == "r.jsonl":
        frame.to_json(tmp_path / name, orient="records", lines=True)
        words.append("line 3001:")
    elif name == "r.txt":
        (tmp_path / name).write_bytes(b"good film\n" * 3000 + b"caf\xe9\n")
        words = ["line 3001", "0xe9"]
    else:
        frame.to_csv(tmp_path / name, index=False)
        words.append("line 3002:")
    status, _, err = classify("--file", str(tmp_path / name))
    assert status == 2
    assert all(word in err for word in words), err


@pytest.mark.parametrize("good", [0, 9])
def test_rows_of_a_pipe_before_a_faulty_one_are_kept(classify, tmp_path, monkeypatch, good):
    monkeypatch.setattr(module, "CHUNK", 4)
    fifo, output = tmp_path / "r.csv", tmp_path / "said.csv"
    os.mkfifo(fifo)
    content = "text,stars\n" + "good film,5\n" * good + "bad\n"
    writer = threading.Thread(target=fifo.write_text, args=(content,))
    writer.start()
    status, _, err = classify("--file", str(fifo), "--output", str(output))
    writer.join()
    assert status == 2 and f"row {good + 1} (line {good + 2}) has 1 fields" in err
    if good:
        assert [row["id"] for row in csv.DictReader(io.StringIO(output.read_text()))] == [
            str(row) for row in range(1, good + 1)
        ]
        assert f"the 9 reviews before it are classified in {output}" in err
    assert output.exists() == bool(good) and len(list(tmp_path.iterdir())) == 1 + bool(good)


def test_output_through_a_link_replaces_what_the_link_points_to(classify, tmp_path):
    target, link, texts = tmp_path / "kept" / "said.csv", tmp_path / "link.CSV", tmp_path / "r.txt"
    texts.write_text("good film\nbad film\n")
    link.symlink_to(target)
    for before in (None, "old"):
        if before:
            target.write_text(before)
        assert classify("--file", str(texts), "--output", str(link))[0] == 0
        assert link.is_symlink() and not target.is_symlink()
        assert [row["id"] for row in csv.DictReader(io.StringIO(target.read_text()))] == ["1", "2"]
    link.unlink()
    link.symlink_to(link.name)
    status, _, err = classify("--file", str(texts), "--output", str(link))
    assert status == 2 and "back to itself" in err


@pytest.mark.parametrize("way", ["symbolic", "hard", "home", "stdin"])
def test_the_reviews_own_file_is_never_the_output(classify, tmp_path, monkeypatch, way):
    source, other = tmp_path / "r.csv", tmp_path / "other.csv"
    source.write_text("text\ngood\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    file, output = str(source), str(other)
    if way == "symbolic":
        other.symlink_to(source)
    elif way == "hard":
        other.hardlink_to(source)
    elif way == "home":
        file, output = "~/r.csv", str(source)
    else:
        file, output = "-", str(source)
    with source.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        status, _, err = classify("--file", file, "--output", output)
    assert status == 2 and "file of the reviews" in err
    assert source.read_text() == "text\ngood\n"


def test_a_pipes_lines_end_at_newline_alone(classify, monkeypatch):
    pipe(monkeypatch, "good\rfilm\x85\n\u2028\nbad\x0cfilm\r\n".encode())
    status, rows, _ = classify("--file", "-")
    assert (status, [row["id"] for row in rows]) == (0, ["1", "3"])


def test_a_file_that_is_not_there_is_said_before_anything_is_printed(classify, capsys):
    assert classify("--file", "nowhere.csv")[:2] == (2, [])
    status, rows, err = classify("--file", "-", "--text-column", "review")
    assert (status, rows) == (2, []) and "lines have no columns" in err


def test_an_id_with_any_end_of_line_in_it_is_one_id(classify, tmp_path):
    ids = ["a\rb", "c\nd", 'e,"f', "g"]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps({"id": name, "text": "good film"}) + "\n" for name in ids))
    output = tmp_path / "p.csv"
    assert classify("--file", str(tmp_path / "r.jsonl"), "--output", str(output))[0] == 0
    assert pd.read_csv(output)["id"].tolist() == ids
    with output.open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ids


def test_the_column_of_texts_can_be_named(classify, tmp_path):
    (tmp_path / "r.csv").write_text("text,review\n,good film\n,bad film\n")
    assert "--text-column" in classify("--file", str(tmp_path / "r.csv"))[2]
    status, rows, _ = classify("--file", str(tmp_path / "r.csv"), "--text-column", "review")
    assert (status, len(rows)) == (0, 2)


def test_the_column_that_a_run_was_trained_on_is_taken_first(run, tmp_path, capsys):
    copied = shutil.copytree(run, tmp_path / "run")
    content = json.loads((run / "record.json").read_text())
    content["config"]["data"]["text_column"] = "note"
    (copied / "record.json").write_text(json.dumps(content))
    (tmp_path / "r.csv").write_text("text,note\n,good film\n,bad film\n")
    arguments = ["predict", "--run", str(copied), "--file", str(tmp_path / "r.csv")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("\n") == 3
    assert main([*arguments, "--text-column", "text"]) == 2
    assert "no text" in capsys.readouterr().err
    (tmp_path / "r.csv").write_text("review\ngood film\n")
    assert main(arguments) == 0
    (copied / "record.json").write_text(json.dumps(content | {"config": {"data": {"text_column": 5}}}))
    assert main(arguments) == 2
    assert "record.json: data.text_column: 5 is not valid" in capsys.readouterr().err


def test_a_closed_standard_input_is_one_line(classify, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    status, _, err = classify("--file", "-")
    assert (status, err.count("\n")) == (2, 1) and "closed" in err


def test_no_review_gives_no_prediction(classify, monkeypatch):
    pipe(monkeypatch, b"\n \n")
    status, rows, err = classify("--file", "-")
    assert (status, rows) == (0, [])
    assert "0 reviews" in err


def test_a_closed_pipe_ends_quietly(run, monkeypatch, capsys):
    pipe(monkeypatch, b"good film\n" * 100)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["predict", "--run", str(run), "--file", "-"]) == 0
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_lines_in_a_log_and_a_bar_in_a_terminal(classify, texts, tmp_path, monkeypatch):
    (tmp_path / "reviews.txt").write_text("\n".join(texts))
    arguments = ("--file", str(tmp_path / "reviews.txt"))
    monkeypatch.setattr("lora_study.base.progress.INTERVAL", 0)
    _, in_log, err = classify(*arguments)
    assert [line.split()[0] for line in err.splitlines()] == ["32", "50", "50"]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    status, rows, _ = classify(*arguments)
    assert (status, rows) == (0, in_log)
    assert "50 reviews" in terminal.getvalue().replace("\x1b", " ")
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert classify(*arguments)[0] == 0
    assert sys.stderr.getvalue().startswith("50 reviews in"), "no bar among the rows"
