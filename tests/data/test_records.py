"""Records of every kind of file: the same fields out of all, and one line about what is wrong."""

import csv
import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_keras.data.errors import InputError
from gpt_keras.data.records import Fields, parse_columns, read_records

FIELDS = Fields(("text", "label"))
ROWS = [
    {"text": 'good, "really"\ngood', "label": "positive"},
    {"text": "bad", "label": "negative"},
    {"text": "ünïcödé ✓", "label": "positive"},
]


def records(source, fields=FIELDS):
    return [record for _, record in read_records(str(source), fields)]


def write_table(path, rows, delimiter=","):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_the_same_records_from_every_kind_of_file(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    files = [
        tmp_path / "a.parquet",
        write_table(tmp_path / "a.csv", ROWS),
        write_table(tmp_path / "a.csv.gz", ROWS),
        write_table(tmp_path / "a.tsv", ROWS, "\t"),
        write_lines(tmp_path / "a.jsonl", ROWS),
    ]
    for file in files:
        assert records(file) == ROWS, file


def test_records_of_a_hugging_face_data_set_name_their_classes(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    saved = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    saved.save_to_disk(str(tmp_path / "saved"))
    assert records(f"hf:{tmp_path}/saved") == [{"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}]


def test_records_of_a_tensorflow_data_set_name_their_classes(monkeypatch):
    import tensorflow_datasets as tfds

    class Info:
        features = {"text": None, "label": tfds.features.ClassLabel(names=["neg", "pos"])}

    rows = [{"text": b"a", "label": np.int64(1)}, {"text": b"b", "label": np.int64(0)}]
    monkeypatch.setattr(tfds, "load", lambda name, **options: (rows, Info))
    monkeypatch.setattr(tfds, "as_numpy", iter)
    assert records("tfds:reviews/test") == [{"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}]


def test_fields_by_other_names_and_optional_ones(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"sentence": "a", "label": 1, "more": None}])
    columns = parse_columns(["text=sentence"], ["text", "label", "setup"])
    assert records(file, Fields(("text", "label"), {"setup": ""}, columns)) == [{"text": "a", "label": 1, "setup": ""}]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "text": st.text(st.characters(codec="utf-8", exclude_characters="\0")),
                "label": st.sampled_from(["a", "b"]),
            }
        ),
        min_size=1,
    )
)
def test_a_table_gives_back_what_was_written(tmp_path_factory, rows):
    assert records(write_table(tmp_path_factory.mktemp("table") / "a.csv", rows)) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,b,c\n", r"bad\.csv, line 2: not 2 columns"),
        ("text,label\na\n", r"bad\.csv, line 2: not 2 columns"),
        ("words,label\na,b\n", r"no field 'text'; there are words, label: choose with --map text=NAME"),
        ('text,label\n"a,b\n', r"bad\.csv: damaged table"),
        (b"text,label\n\xff\xfe,b\n", r"bad\.csv: not UTF-8 \(byte 0xff\)"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path, content, message):
    file = tmp_path / "bad.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        records(file)


def test_what_is_no_source_of_records_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for source, message in [
        (tmp_path / "a.txt", "text; records are .jsonl, .csv"),
        (tmp_path / "missing.csv", "no such file or folder"),
        (write_lines(tmp_path / "b.jsonl", [3]), "expected an object, found int"),
    ]:
        with pytest.raises(InputError, match=message):
            records(source)
    for pair, message in [("text", "expected FIELD=COLUMN"), ("words=text", "there is no field words")]:
        with pytest.raises(InputError, match=message):
            parse_columns([pair], ["text", "label"])
