"""Tables as people have them: every format read to the same reviews, every odd one refused by name of what is odd."""

import gzip
import json

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from write_table import write_table

from lora_study.base.errors import ConfigError
from lora_study.config import DataConfig
from lora_study.data.sources import load_reviews
from lora_study.data.stream import open_reviews

# Text that readers like to change.
TEXTS = ["NA", "007", 'a, "b"\tc', "one\ntwo", "form\x0cfeed\x85and\u2028more", "null", " nan "]
LABELS = [0, 1, 1, 0, 1, 0, 0]


def load(path, **changes):
    return load_reviews(DataConfig(source=str(path), **changes))


def written(folder, name, content):
    (folder / name).write_bytes(content.encode())
    return folder / name


def to_predict(path, *columns):
    with open_reviews(str(path), *columns) as reviews:
        return [(review.id, review.text) for review in reviews]


def refusal(path, **changes):
    with pytest.raises(ConfigError) as caught:
        load(path, **changes)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("zipped", ["", ".gz", ".GZ"])
@pytest.mark.parametrize("ending", [".csv", ".TSV", ".jsonl", ".ndjson", ".Parquet"])
def test_every_format_gives_the_same_reviews_to_train_on_and_to_predict(tmp_path, ending, zipped):
    path = tmp_path / f"reviews{ending}{zipped}"
    ids = ["01", "2.0", "NaN", "x y", "é", "-", "None"]
    write_table(path, {"id": ids, "review": TEXTS, "Sentiment": LABELS})
    reviews = load(path)
    assert reviews["text"].tolist() == TEXTS
    assert reviews["label"].tolist() == LABELS
    assert reviews["id"].tolist() == ids
    assert to_predict(path) == list(zip(ids, TEXTS, strict=True))


@pytest.mark.parametrize("name", ["r.csv.gz", "r.txt.gz", "r.parquet.gz"])
@pytest.mark.parametrize(
    "spoil", [lambda whole: whole[:-9], lambda whole: whole[:-8] + bytes(8), lambda whole: b"text"]
)
def test_a_gzip_file_that_is_not_whole_is_refused(tmp_path, name, spoil):
    (tmp_path / name).write_bytes(spoil(gzip.compress(b"text\n" * 1000)))
    with pytest.raises(ConfigError, match=r"is not a complete \.gz file"):
        to_predict(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "text", "label"),
    [
        ("text, label\na, 0\nb, 1\n", "a", 0),
        ('label, text \n1, "a, b"\n0, c\n', "a, b", 1),
        ("\ufefftext,label\r\na,1\r\nb,0\r\n", "a", 1),
        ("\n\ntext,label\na,1\n\nb,0\n", "a", 1),
        ("text,label,,\na,1,,\nb,0,,\n", "a", 1),
        ("text,label\na\rb,1\nc,0\n", "a\rb", 1),
        ('text,label\n"a\rb\r\nc\x0c\u2028\x85",1\nc,0\n', "a\rb\r\nc\x0c\u2028\x85", 1),
        ("rating,text,label\n9,a,1\n1,b,0\n", "a", 1),
        ('text,label\n" ""a"" film",1\nb,0\n', ' "a" film', 1),
        ('text,label\n"a, ""b""\r\nc",1\r\n\r\n"' + "long " * 50_000 + '",0\r\n', 'a, "b"\r\nc', 1),
    ],
    ids=range(10),
)
def test_odd_csv_is_read_as_it_is_meant(tmp_path, content, text, label):
    path = written(tmp_path, "r.csv", content)
    reviews = load(path)
    assert (reviews["text"][0], reviews["label"][0], len(reviews)) == (text, label, 2)
    assert to_predict(path) == [("1", text), ("2", reviews["text"][1])]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('text,label\n"He said \\"no\\", twice",0\n', ["row 1 (line 2)", r"\""]),
        ('text,label\n"a\nb",0\nc,"0" \nd,1\n', ["row 2 (line 4)", "between a quote and the end of its field"]),
        ('label,text\n0, "a film"\n1,b\n', ["line 2", "a space before a quote"]),
        ('label,text\n0, "a, film"\n1,b\n', ["row 1 (line 2) has 3 fields", "quote"]),
        ('text,label\na,0\n"b,1\nc,0\n', ["row 2 (line 3)", "never closed"]),
        ("text,label\ra,0\rb,1\r", ["carriage returns"]),
        ("text;label\na;0\nb;1\n", ["one column, 'text;label'", "separated by ';'"]),
        ('text,label\n"a\nb",0\n,1\n', ["line 4: row 2 has no text"]),
        ("text,label,label\na,0,1\nb,1,0\n", ["2 columns called 'label'"]),
        ("text, text ,label\na,a,1\nb,b,0\n", ["2 columns called 'text'"]),
        ("text,Review,label\na,b,1\nb,c,0\n", ["'text', 'Review'", "data.text_column"]),
        ("text,label,sentiment\na,0,1\nb,1,0\n", ["'label', 'sentiment'", "data.label_column"]),
        ("id,id,text,label\na,0,x,1\n", ["2 columns called 'id'"]),
    ],
)
def test_a_csv_that_cannot_be_read_is_refused_by_name_of_what_is_odd(tmp_path, content, words):
    message = refusal(written(tmp_path, "r.csv", content))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a", "label": 0, "label": 1}\n', ["line 1", "'label' twice"]),
        ('{"text": "a", "label": 0}\n\n{"text": "b", "label": 1, "id": "x"}\n', ["line 3", "'id'"]),
        ('{"text": "a", "label": 0}\n\n{"text": "b", "label": NaN}\n', ["line 3: row 2: label nan"]),
    ],
)
def test_odd_json_lines_are_refused(tmp_path, content, words):
    message = refusal(written(tmp_path, "r.jsonl", content))
    assert all(word in message for word in words), message


# Columns and labels ----------------------------------------------------------------------------------------------


def test_columns_and_labels_are_what_the_user_says(tmp_path):
    path = written(tmp_path, "r.csv", "text,note,stars,label\na,x,5,0\nb,y,1.0,0\nc,z,4,1\n")
    reviews = load(path, text_column="note", label_column="stars", labels={"1": 0, "4": 1, "5": 1})
    assert reviews["text"].tolist() == ["x", "y", "z"]
    assert reviews["label"].tolist() == [1, 0, 1]
    assert to_predict(path, "note") == [("1", "x"), ("2", "y"), ("3", "z")]
    assert to_predict(path, None, "note") == [("1", "x"), ("2", "y"), ("3", "z")]
    assert to_predict(path, "stars", "note") == [("1", "5"), ("2", "1.0"), ("3", "4")]
    assert to_predict(path, None, "body") == [("1", "a"), ("2", "b"), ("3", "c")]
    assert "no column 'nope', only 'text', 'note', 'stars', 'label'" in refusal(path, text_column="nope")
    assert "label '4' is not one of those" in refusal(path, label_column="stars", labels={"1": 0, "5": 1})
    assert "name each label once" in str(_config_error(path, labels={"bad": 0, "Bad ": 1}))


def _config_error(path, **changes):
    with pytest.raises(ConfigError) as caught:
        load(path, **changes)
    return caught.value


def test_settings_for_tables_are_refused_for_other_sources(tmp_path):
    review = tmp_path / "aclImdb" / "train" / "pos" / "0_9.txt"
    review.parent.mkdir(parents=True)
    review.write_text("good")
    with pytest.raises(ConfigError, match="they are for tables"):
        load(tmp_path, text_column="text")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1], [0, 1]),
        (["0", "1"], [0, 1]),
        (["0.0", "1.0"], [0, 1]),
        (["True", "False"], [1, 0]),
        (["TRUE", " false"], [1, 0]),
        (["pos", "neg"], [1, 0]),
        (["Negative", "POSITIVE "], [0, 1]),
        ([1, 0.0], [1, 0]),
        ([True, False], [1, 0]),
    ],
)
def test_labels_are_what_they_say(tmp_path, ending, values, expected):
    reviews = load(write_table(tmp_path / f"r.{ending}", {"text": ["a", "b"], "label": values}))
    assert reviews["label"].tolist() == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, -1], ["row 2: label -1", "unlabelled"]),
        (["0", "1", "2"], ["row 3: label '2'", "two classes", "data.labels"]),
        ([0, 1, 1.5], ["row 3: label 1.5"]),
        (["neg", "pos", "neutral"], ["row 3: label 'neutral'", "two classes"]),
        ([0, "pos"], ["row 2: label 'pos' stands among labels such as 0"]),
        ([0, True], ["row 2: label True stands among"]),
        ([0, "1"], ["row 2: label '1' stands among"]),
        (["neg", "positive"], ["row 2: label 'positive' stands among"]),
        (["", "1"], ["row 1: label '' is empty"]),
    ],
)
def test_labels_that_could_be_misread_are_refused(tmp_path, values, words):
    rows = [json.dumps({"text": "a", "label": value}) for value in values]
    message = refusal(written(tmp_path, "r.jsonl", "\n".join(rows)))
    assert all(word in message for word in words), message


def class_label(path, names, labels):
    """A Parquet file with names for its class numbers, as datasets writes them."""
    features = {"label": {"names": names, "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = {"text": [f"text {row}" for row in range(len(labels))], "label": labels}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["neg", "pos"], [0, 1, 1]),
        (["pos", "neg"], [1, 0, 0]),
        (["positive", "negative"], [1, 0, 0]),
        (["1", "0"], [1, 0, 0]),
    ],
)
def test_the_names_of_class_numbers_decide(tmp_path, names, expected):
    assert load(class_label(tmp_path / "r.parquet", names, [0, 1, 1]))["label"].tolist() == expected


def test_class_numbers_whose_names_do_not_say_are_refused_until_the_user_does(tmp_path):
    path = class_label(tmp_path / "r.parquet", ["good", "bad"], [0, 1, 1])
    assert "row 1: label 'good'" in refusal(path)
    assert load(class_label(tmp_path / "f.parquet", ["pos", "neg"], [0.0, 1.0]))["label"].tolist() == [1, 0]
    assert load(path, labels={"bad": 0, "good": 1})["label"].tolist() == [1, 0, 0]
    path = class_label(tmp_path / "r.parquet", ["neg", "pos"], [0, 1, -1])
    assert "row 3: label -1 is not among the table's classes ('neg', 'pos'): unlabelled" in refusal(path)
    path = class_label(tmp_path / "r.parquet", ["neg", "neutral", "pos"], [0, 1, 2])
    assert "row 2: label 'neutral'" in refusal(path)
    assert "cannot be read as Parquet" in refusal(class_label(tmp_path / "r.parquet", {"0": "neg"}, [0, 1]))


def test_two_parquet_columns_of_one_name_are_refused_where_they_are_read(tmp_path):
    columns = [pa.array(["a", "b"]), pa.array([0, 1]), pa.array([1, 0])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "label", "label"]), tmp_path / "r.parquet")
    assert "2 columns called 'label'" in refusal(tmp_path / "r.parquet")
    columns.append(pa.array([1, 0]))
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "label", "x", "x"]), tmp_path / "r.parquet")
    assert load(tmp_path / "r.parquet")["label"].tolist() == [0, 1]


# Folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def data_set():
    """Three reviews whose class 0 is positive."""
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
    rows = {"text": ["a", "b", "c"], "label": [0, 1, 1]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_a_folder_that_save_to_disk_wrote_is_read(data_set, tmp_path):
    data_set.save_to_disk(tmp_path / "one", num_shards=2)
    reviews = load(tmp_path / "one")
    assert reviews["id"].tolist() == ["1", "2", "3"]
    assert reviews["text"].tolist() == ["a", "b", "c"] and reviews["label"].tolist() == [1, 0, 0]
    assert reviews["split"].tolist() == [None] * 3
    parts = {"test": data_set, "unsupervised": data_set, "validation": data_set, "train": data_set}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "many")
    reviews = load(tmp_path / "many")
    assert reviews["id"].tolist() == [f"{split}/{row}" for split in ("train", "validation", "test") for row in range(3)]
    assert reviews["split"].tolist() == ["train"] * 6 + ["test"] * 3
    assert [text for _, text in to_predict(tmp_path / "many")] == ["a", "b", "c"] * 4  # what has no labels, too


@pytest.mark.parametrize("spoilt", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]"])
def test_a_damaged_folder_of_save_to_disk_is_refused(data_set, tmp_path, spoilt, content):
    data_set.save_to_disk(tmp_path / "one")
    (tmp_path / "one" / spoilt).write_bytes(content)
    assert "save the data set again" in refusal(tmp_path / "one")


def test_the_hubs_folder_of_parquet_files_is_read_as_the_hub_is(data_set, tmp_path):
    folder = tmp_path / "plain_text"
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "unsupervised-00000-of-00001"):
        data_set.to_parquet(folder / f"{name}.parquet")
    for path in (tmp_path, folder):
        reviews = load(path)
        assert reviews["id"].tolist() == [*(f"train/{row}" for row in range(6)), "test/0", "test/1", "test/2"]
        assert reviews["label"].tolist() == [1, 0, 0] * 3
        assert reviews["split"].tolist() == ["train"] * 6 + ["test"] * 3
    assert [name for name, _ in to_predict(folder)][-3:] == [f"unsupervised/{row}" for row in range(3)]
    data_set.to_parquet(tmp_path / "other" / "train-0.parquet")
    assert "several data sets ('other', 'plain_text')" in refusal(tmp_path)


# What is predicted -----------------------------------------------------------------------------------------------


def test_a_folder_of_which_a_part_would_be_left_out_is_refused(data_set, tmp_path):
    for name in ("train-00000-of-00003", "train-00002-of-00003", "test-00000-of-00001"):
        data_set.to_parquet(tmp_path / "cut" / f"{name}.parquet")
    assert "cut holds 2 of the 3 files of train; fetch the others" in refusal(tmp_path / "cut")
    data_set.to_parquet(tmp_path / "kinds" / "train" / "0.parquet")
    for name in ("notes.csv", "train_copy.csv"):
        (tmp_path / "kinds" / name).write_text("anything")
    assert len(load(tmp_path / "kinds")) == 3
    (tmp_path / "kinds" / "test").mkdir()
    (tmp_path / "kinds" / "test" / "0.csv").write_text("text,label\nfine,1\n")
    assert "kinds holds 0.csv beside Parquet files" in refusal(tmp_path / "kinds")
    data_set.to_parquet(tmp_path / "twice" / "train.parquet")
    (tmp_path / "twice" / "train.parquet.gz").write_bytes(b"anything")
    assert "twice holds train.parquet twice, with .gz and without" in refusal(tmp_path / "twice")


def test_a_piece_that_is_missing_of_a_split_that_is_skipped_does_not_matter(data_set, tmp_path):
    for name in ("train-00000-of-00001-1a2b", "unsupervised-00000-of-00002-3c4d"):
        data_set.to_parquet(tmp_path / f"{name}.parquet")
    assert len(load(tmp_path)) == 3
    with pytest.raises(ConfigError, match="holds 1 of the 2 files of unsupervised"):
        to_predict(tmp_path)


def test_a_folder_s_files_may_have_endings_in_capitals_and_be_gzipped(data_set, tmp_path):
    data_set.to_parquet(tmp_path / "train.parquet")
    (tmp_path / "TEST.PARQUET.GZ").write_bytes(gzip.compress((tmp_path / "train.parquet").read_bytes()))
    assert load(tmp_path)["split"].tolist() == ["train"] * 3 + ["test"] * 3


def test_lines_of_a_text_end_at_newline_alone(tmp_path):
    path = written(tmp_path, "r.txt", "a\rb\n\x0c\n\nc\x85d\u2028e\x0bf\r\n g \n")
    assert to_predict(path) == [("1", "a\rb"), ("4", "c\x85d\u2028e\x0bf"), ("5", " g ")]


def test_a_table_longer_than_a_batch_is_read_whole_and_in_order(tmp_path):
    rows = [f"text {row}" for row in range(5000)]
    pd.DataFrame({"text": rows}).to_parquet(tmp_path / "r.parquet", row_group_size=700)
    assert [text for _, text in to_predict(tmp_path / "r.parquet")] == rows


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_ids_and_splits_are_found_in_capitals_or_not(tmp_path, ending):
    columns = {"ID": ["0", "7"], "Text": ["good", "bad"], "LABEL": [1, 0], "Split": ["test", "train"]}
    path = write_table(tmp_path / f"r.{ending}", columns)
    assert to_predict(path) == [("0", "good"), ("7", "bad")]
    assert sorted(load(path)[["id", "split"]].to_numpy().tolist()) == [["0", "test"], ["7", "train"]]
    both = write_table(tmp_path / f"both.{ending}", {"Id": ["x", "y"], **columns, "id": ["a", "b"]})
    assert to_predict(both) == [("a", "good"), ("b", "bad")]


def test_a_split_is_not_read_where_labels_are_not(tmp_path):
    path = written(tmp_path, "r.csv", "text,label,split\ngood,1,holdout\n")
    assert to_predict(path) == [("1", "good")]
    assert "split 'holdout' is not understood" in refusal(path)


def test_one_column_cannot_be_text_and_label(tmp_path):
    path = written(tmp_path, "r.csv", "label,other\n1,good\n0,bad\n")
    message = refusal(path, text_column="label")
    assert "'label' would be both text and label; name one with data.label_column" in message


def test_a_stray_quote_in_a_tsv_does_not_swallow_rows(tmp_path):
    path = written(tmp_path, "r.tsv", 'text\tlabel\nfine\t1\n"I loved it\t1\nbad\t0\nand hated it"\t0\nok\t1\n')
    assert "line 3 has a tab and the end of a line between quotes" in refusal(path)
    rows = 'title\ttext\tlabel\n"Great film\tbody one\t1\nNice one"\tbody two\t0\n'
    assert "line 2 has a tab and the end of a line between quotes" in refusal(written(tmp_path, "t.tsv", rows))
    quoted = 'text\tlabel\n"""I loved it"\t1\nand hated it\t0\n'
    assert [text for _, text in to_predict(written(tmp_path, "q.tsv", quoted))] == ['"I loved it', "and hated it"]


@pytest.mark.parametrize(("ids", "words"), [([1.5, float("nan")], "has no id"), ([b"a", b"b"], "is not a text")])
def test_what_is_no_id_is_refused(tmp_path, ids, words):
    path = tmp_path / "reviews.parquet"
    pq.write_table(pa.table({"id": ids, "text": ["good", "bad"], "label": [1, 0]}), path)
    assert words in refusal(path)
