"""Raw records: formats, splits, and every way a file can be damaged."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import pytest

from llmft.api.errors import DataError, LlmftError
from llmft.data.data_files import ENDINGS
from llmft.data.tables import ReadLimits, read_file, read_records

CUT = gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-12]
ROWS = [{"a": "x", "n": 1}, {"a": "ü\nz", "n": 2}]


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def lines(tmp_path):
    return write(tmp_path / "rows.jsonl", "".join(json.dumps(r) + "\n" for r in ROWS))


def test_jsonl_gives_records_with_their_lines(lines):
    assert list(read_file(lines)) == [(f"{lines}:1", ROWS[0]), (f"{lines}:2", ROWS[1])]


def test_gzip_is_read_under_any_name(tmp_path, lines):
    packed = write(tmp_path / "b.jsonl.gz", gzip.compress(lines.read_bytes()))
    hidden = write(tmp_path / "c.jsonl", gzip.compress(lines.read_bytes()))
    for path in (packed, hidden):
        assert [record for _, record in read_file(path)] == ROWS


def test_zstandard_is_read_under_any_name(tmp_path, lines):
    import pyarrow

    packed = pyarrow.compress(lines.read_bytes(), codec="zstd", asbytes=True)
    for name in ("b.jsonl.zst", "c.jsonl"):
        path = write(tmp_path / name, packed)
        assert [record for _, record in read_file(path)] == ROWS
    for damaged in (packed[:-4], packed[:4] + b" no more"):
        path = write(tmp_path / "d.jsonl.zst", damaged)
        for _ in range(3):  # read on, pyarrow gives bytes of another file that it has read
            with pytest.raises(DataError, match="ends in the middle"):
                list(read_file(path))


@pytest.mark.parametrize("ending", ENDINGS)
def test_shards_are_read_in_every_format_and_packing(tmp_path, ending):
    for number in range(2):
        write_rows(tmp_path / f"train-0000{number}-of-00002{ending}", [{"a": f"{number}"}])
    found = [list(record.values()) for _, record in read_records(str(tmp_path), "train")]
    assert found == [["0"], ["1"]]


def write_rows(path, rows):
    """Write rows in the format and packing of the path's ending."""
    import pyarrow
    import pyarrow.parquet

    form = path.name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    cells = "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)])
    plain = "\n".join(row.get("a", "") for row in rows)
    text = {"jsonl": lines, "json": json.dumps(rows), "csv": cells, "txt": plain}[form].encode()
    if path.name.endswith(".gz"):
        text = gzip.compress(text)
    if path.name.endswith(".zst"):
        import pyarrow

        text = pyarrow.compress(text, codec="zstd", asbytes=True)
    path.write_bytes(text)


def test_a_pattern_and_a_folder_named_as_the_split_are_read_in_order(tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("b", "a"):
        write_rows(tmp_path / "train" / f"{name}.jsonl", [{"a": name}])
    read = ((str(tmp_path / "*" / "*.jsonl"), None), (str(tmp_path), None),
            (None, {"train": str(tmp_path / "train" / "?.jsonl")}))  # fmt: skip
    for path, files in read:
        found = read_records(path, "train", data_files=files)
        assert [record["a"] for _, record in found] == ["a", "b"]


@pytest.mark.parametrize(
    ("files", "path", "code", "said"),
    [
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "", "E107",
         "2 of 3 shards: 'train-00001-of-00003.parquet' is missing"),
        (["x-1-of-3.jsonl", "x-3-of-3.jsonl"], "*.jsonl", "E107", "'x-2-of-3.jsonl' is missing"),
        (["train.jsonl", "train.csv"], "", "E109",
         "several formats: 'train.csv' and 'train.jsonl'"),
        (["train.jsonl", "train.jsonl.gz"], "", "E109", "in several formats"),
        (["train.jsonl", "train-00000.jsonl"], "", "E109", "has both 'train.jsonl' and"),
        (["a.jsonl", "b.csv"], "*", "E109", "in several formats"),
        (["a.jsonl"], "*.json", "E107", "no file fits"),
        (["a.jsonl", "a.md"], "*", "E107", "an unknown file extension"),
    ],
)  # fmt: skip
def test_files_that_are_no_whole_split_are_refused(tmp_path, files, path, code, said):
    for name in files:
        if name.endswith(".md"):
            write(tmp_path / name, "")
        else:
            write_rows(tmp_path / name, [{"a": "1"}])
    with pytest.raises(DataError) as caught:
        list(read_records(str(tmp_path / path), "train"))
    assert caught.value.faults[0].code == code
    assert said in caught.value.faults[0].what


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    write_rows(tmp_path / "a[1].jsonl", [{"a": "1"}])
    assert len(list(read_records(str(tmp_path / "a[1].jsonl"), "train"))) == 1


@pytest.mark.parametrize(
    "text",
    ["a;n\nx;1,5\ny;2\n", "a\tn\nx\t1,5\ny\t2\n", '"a;b";n\r\nx;1,5\r\ny;2\r\n', "a;n\rx;1,5\ry;2"],
)
def test_cells_are_parted_by_what_the_header_has_in_place_of_commas(tmp_path, text):
    read = [tuple(record.values()) for _, record in read_file(write(tmp_path / "a.csv", text))]
    assert read == [("x", "1,5"), ("y", "2")]


@pytest.mark.parametrize("packed", [False, True])
def test_lines_may_end_with_a_carriage_return_alone(tmp_path, packed):
    text = b'{"a": 1}\r{"a": "x\\ry"}\r'
    path = write(tmp_path / "a.jsonl", gzip.compress(text) if packed else text)
    assert [record for _, record in read_file(path)] == [{"a": 1}, {"a": "x\ry"}]


def test_parquet_whose_column_is_no_utf_8_is_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"prompt", b"pro\x9ept"))
    with pytest.raises(DataError, match=r"E107.*rows\.parquet.*not a complete parquet"):
        list(read_file(path, ReadLimits()))


def test_json_csv_and_parquet_give_the_same(tmp_path):
    import pyarrow
    import pyarrow.parquet

    listed = write(tmp_path / "a.json", json.dumps(ROWS))
    squad = write(tmp_path / "b.json", json.dumps({"Data": ROWS}))
    table = tmp_path / "c.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), table)
    for path in (listed, squad, table):
        assert [record for _, record in read_file(path)] == ROWS
    comma = write(tmp_path / "d.csv", 'a,n\nx,1\n"ü\nz",2\n')
    assert [record for _, record in read_file(comma)] == [
        {"a": "x", "n": "1"},
        {"a": "ü\nz", "n": "2"},
    ]


def test_a_folder_has_a_file_for_each_split(tmp_path, lines):
    os.replace(lines, tmp_path / "validation.jsonl")
    assert len(list(read_records(str(tmp_path), "validation"))) == 2
    with pytest.raises(DataError, match="no file for the split 'train'"):
        list(read_records(str(tmp_path), "train"))


def test_an_embedded_file_of_its_own_has_no_other_split():
    assert next(iter(read_records("embedded:prompts", "train")))
    with pytest.raises(DataError, match="one file, so there is no split 'validation'") as caught:
        list(read_records("embedded:prompts", "validation"))
    assert "evaluate.holdout" in caught.value.faults[0].fix


def test_one_file_is_the_train_split_only(lines):
    assert len(list(read_records(str(lines), "train"))) == 2
    with pytest.raises(DataError, match="one file, so there is no split 'validation'"):
        list(read_records(str(lines), "validation"))


def test_data_files_name_their_splits(lines):
    files = {"train": str(lines), "dev": str(lines)}
    assert len(list(read_records(None, "dev", data_files=files))) == 2
    with pytest.raises(DataError, match=r"no split 'test' \(data_files has: train, dev\)"):
        list(read_records(None, "test", data_files=files))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": ', "a.jsonl:2:7: not JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "a.jsonl:2: a JSON object is wanted, got list"),
        ("a.jsonl", b'{"a": "\xff"}\n', "a.jsonl:1: byte 8 is not UTF-8"),
        ("a.json", b'{"a": 1}', "a list of JSON objects is wanted"),
        ("a.json", b"[{]", "a.json:1:3: not JSON"),
        ("a.csv", b"a,b\n1,2,3\n", "a.csv:2: the row and the header have different"),
        ("a.csv", b"a,b\n1\n", "a.csv:2: the row and the header have different"),
        ("a.parquet", b"PAR1 nothing", "not a complete parquet file"),
        ("a.md", b"text", "an unknown file extension"),
        ("a.jsonl.gz", CUT, "the file ends in the middle of the data"),
        ("a.json.gz", CUT, "the file ends in the middle of the data"),
        ("a.csv.gz", CUT, "the file ends in the middle of the data"),
        ("a.jsonl", b'{"a": ' + b"[" * 99999, "a.jsonl:1: not readable JSON"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "a.jsonl:1: not readable JSON"),
        ("a.json", b"[" * 99999, "a.json: not readable JSON"),
        ("a.jsonl", b'{"a": "x \\ud800 y"}', "a.jsonl:1: a text holds half of a surrogate"),
        ("a.json", b'[{"a": "x \\ud800 y"}]', "item 1: a text holds half of a surrogate"),
        ("a.csv", b"a,b,a\n1,2,3\n", "a.csv:1: two columns are called 'a'"),
        ("a.csv", b"a;b\n1;2;3\n", "different numbers of cells, where semicolons part them"),
        ("a.jsonl", b'{"a": 1}\n{"a": 1, "a": 3}\n', "a.jsonl:2: the key 'a' is there twice"),
        ("a.json", b'[{"m": [{"r": 1, "r": 1}]}]', "a.json: the key 'r' is there twice"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd no more", "the file ends in the middle of the data"),
    ],
)  # fmt: skip
def test_d7_d8_damage_is_named_with_its_place(tmp_path, name, content, said):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        list(read_file(path))
    assert said in caught.value.faults[0].what


def test_a_cell_may_be_as_long_as_a_line(tmp_path):
    path = write(tmp_path / "a.csv", "a,b\n" + "x" * 200_000 + ",y\n")
    ((_, record),) = read_file(path)
    assert len(record["a"]) == 200_000


def test_a_pair_of_surrogates_is_one_character(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": "\\ud83d\\ude00"}\n')
    assert [record for _, record in read_file(path)] == [{"a": "\U0001f600"}]


@pytest.mark.parametrize(
    ("name", "content", "ending"),
    [("a.jsonl", '[\n{"a": 1}\n]', ".json"), ("a.jsonl", '[{"a": 1}]', ".json"),
     ("a.json", '{"a": 1}\n{"a": 2}\n', ".jsonl")],
)  # fmt: skip
def test_a_list_and_lines_that_bear_each_others_name_are_told_apart(
    tmp_path, name, content, ending
):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        list(read_file(path))
    assert caught.value.faults[0].fix.endswith(f"name the file {ending}")


def test_a_file_that_may_not_be_read_is_named_with_the_reason(lines, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(lines), "open", refused)
    with pytest.raises(DataError, match=r"rows.jsonl' cannot be read: Permission denied"):
        list(read_file(lines))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_d14_what_is_no_regular_file_is_refused_before_reading(tmp_path, make):
    path = tmp_path / "rows.jsonl"
    make(path)
    with pytest.raises(DataError, match="not a regular file"):
        list(read_file(path))
    with pytest.raises(DataError, match="not a regular file"):
        list(read_file(type(path)("/dev/zero")))


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path):
    for path in ("rows.jsonl", "./rows", str(tmp_path / "none"), "a/b/c.csv"):
        with pytest.raises(DataError, match="there is no file"):
            list(read_records(path, "train"))


def test_a_hub_data_set_that_cannot_be_reached_says_how_to_fetch_it():
    with pytest.raises(LlmftError, match="hf download nobody/nothing --repo-type dataset"):
        list(read_records("nobody/nothing", "train"))


def gz(path: Path, *pieces: bytes) -> Path:
    """Write pieces as gzip does in one member (RFC 1952), each of them compressed only once."""
    packed: dict[bytes, bytes] = {}
    checked = size = 0
    with path.open("wb") as file:
        file.write(b"\x1f\x8b\x08" + bytes(6) + b"\xff")
        for piece in pieces:
            if piece not in packed:
                one = zlib.compressobj(1, wbits=-15)
                packed[piece] = one.compress(piece) + one.flush(zlib.Z_FULL_FLUSH)
            file.write(packed[piece])
            checked, size = zlib.crc32(piece, checked), size + len(piece)
        file.write(zlib.compressobj(wbits=-15).flush() + struct.pack("<II", checked, size % 2**32))
    return path


def test_what_gz_writes_is_gzip(tmp_path):
    assert (
        gzip.decompress(gz(tmp_path / "a", b"a,b\n", b"x", b"x", b"y").read_bytes()) == b"a,b\nxxy"
    )


MANY = [b"x" * 2**20] * 300  # 300 MB unpacked, 1.3 MB in the file
BOMBS = {
    "a.jsonl.gz": [b'{"a": "', *MANY, b'"}\n'],
    "a.json.gz": [b'[{"a": "', *MANY, b'"}]'],
    "a.csv.gz": [b"a,b\n", *MANY, b",y\n"],
    "b.csv.gz": [b'a,b\n"', *[b"x\n" * 2**19] * 300, b'",y\n'],
    "c.csv.gz": [b"a,b\n", *[b"x," * 2**19] * 300],
    "b.json.gz": [b"[" * 2**20] * 300,
    "c.json.gz": [b"[", *[b"{}," * 2**20] * 100, b"{}]"],
}


def memory_of(code: str) -> tuple[str, int]:
    """Run code in a process of its own; return what it printed, and the MB that it took at most."""
    # Not ru_maxrss, which begins with what this process has.
    told = "\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    command = [sys.executable, "-c", code + told]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    said, _, most = done.stdout.strip().rpartition("\n")
    return said, int(most) // 1024


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_unpacks_to_much_is_refused_in_little_memory(tmp_path, name):
    path = gz(tmp_path / name, *BOMBS[name])
    said, most = memory_of(
        "from pathlib import Path; from llmft.data.tables import read_file, ReadLimits\n"
        "try:\n"
        f"    [None for _ in read_file(Path({str(path)!r}), ReadLimits(4, 16))]\n"
        "except Exception as error: print(error)"
    )
    assert "E107" in said
    assert name in said
    assert "max_row_mb" in said or "max_file_mb" in said
    assert most < 250


@pytest.mark.parametrize("how", ["one cell", "one cell for all rows", "a list", "many columns"])
def test_parquet_that_unpacks_to_much_is_refused_in_little_memory(tmp_path, how):
    import pyarrow
    from pyarrow import parquet

    table = {
        "one cell": lambda: {"a": ["y", "y", "x" * (200 * 2**20)]},
        "one cell for all rows": lambda: {
            "a": pyarrow.array(["x" * 2**22] * 50).dictionary_encode()
        },
        "a list": lambda: {"a": [["x" * 2**20] * 200]},
        "many columns": lambda: {f"c{n}": ["x" * 2**20] for n in range(200)},
    }[how]()
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(table), path, compression="zstd", use_dictionary=True)
    del table
    assert path.stat().st_size < 2**20
    said, most = memory_of(
        "from pathlib import Path; from llmft.data.tables import read_file, ReadLimits\n"
        "try:\n"
        f"    [None for _ in read_file(Path({str(path)!r}), ReadLimits(2, 16))]\n"
        "except Exception as error: print(error)"
    )
    assert "a.parquet: row" in said
    assert "larger than 2 MB" in said
    assert most < 1300


STORY = "One.\r\nTwo\r\n\r\n \n\nThree\n"


@pytest.mark.parametrize(
    ("by", "found"),
    [
        ("line", [("1", "One."), ("2", "Two"), ("6", "Three")]),
        ("paragraph", [("1", "One.\r\nTwo"), ("6", "Three")]),
        ("document", [("", STORY)]),
    ],
)
def test_a_text_file_gives_its_lines_paragraphs_or_itself(tmp_path, by, found):
    path = write(tmp_path / "story.txt.gz", gzip.compress(b"\xef\xbb\xbf" + STORY.encode()))
    made = list(read_records(str(path), "train", sample_by=by))
    assert made == [(f"{path}:{at}" if at else str(path), {"text": text}) for at, text in found]


def test_a_text_file_reads_as_datasets_reads_it(tmp_path):
    import datasets

    path = write(tmp_path / "story.txt", "One.\nTwo\n\nThree\n")
    for by in ("line", "paragraph", "document"):
        loaded = datasets.load_dataset(
            "text", data_files=str(path), split="train", sample_by=by, cache_dir=str(tmp_path / by)
        )
        theirs = [text for text in loaded["text"] if text.strip()]
        if by == "paragraph":
            theirs = [text.rstrip("\n") for text in theirs]
        assert [record["text"] for _, record in read_file(path, sample_by=by)] == theirs


@pytest.mark.parametrize(("by", "fix"), [("document", "sample_by: paragraph"), ("line", "raise")])
def test_a_text_above_the_bound_is_refused_with_a_smaller_part(tmp_path, by, fix):
    path = write(tmp_path / "story.txt", "x" * 600_000 + ("\n" if by == "document" else "") * 2
                 + "y" * 600_000)  # fmt: skip
    with pytest.raises(DataError, match=f"the {by} is larger than 1 MB") as caught:
        list(read_file(path, ReadLimits(1, 2), by))
    assert fix in caught.value.faults[0].fix
    if by == "document":
        assert len(list(read_file(path, ReadLimits(1, 2), "paragraph"))) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a\nb\xff\n", ":2: byte 2 is not UTF-8"),
        (gzip.compress(b"a\n" * 9999, mtime=0)[:-9], "ends in the middle"),
    ],
)
def test_a_damaged_text_file_is_named(tmp_path, text, words):
    path = write(tmp_path / "story.txt", text)
    with pytest.raises(DataError, match=words):
        list(read_file(path))


def test_how_a_text_file_is_parted_is_a_setting(tmp_path):
    from llmft_datasets.jsonl import Jsonl

    path = str(write(tmp_path / "story.txt", STORY))
    for more, count in (({}, 3), ({"sample_by": "paragraph"}, 2), ({"sample_by": "document"}, 1)):
        dataset = Jsonl(Jsonl.Config(method="jsonl", path=path, columns={"text": "text"}, **more))
        assert len([dataset.row(r, at).text for at, r in dataset.records("train")]) == count


def test_the_bounds_are_settings():
    from llmft_datasets.jsonl import Jsonl

    config = Jsonl.Config(method="jsonl", path="x.jsonl", max_row_mb=1, max_file_mb=2)
    assert (config.max_row_mb, config.max_file_mb) == (1, 2)


def test_a_record_at_the_bound_is_read_and_one_above_it_is_not(tmp_path):
    cell = "x" * (2**20 - 12)
    limits = ReadLimits(1, 2)
    for name, text in {
        "a.jsonl": json.dumps({"a": cell}) + "\n",
        "a.csv": f"a,b\n{cell},y\n" * 1,
        "a.json": json.dumps([{"a": cell}]),
    }.items():
        assert len(list(read_file(write(tmp_path / name, text), limits))) == 1
        longer = text.replace(cell, cell + "x" * 20)
        with pytest.raises(DataError, match=f"{name}:.* 1 MB"):
            list(read_file(write(tmp_path / name, longer), limits))
    many = f"a,b\n{f'{cell},y' + chr(10)}" + f"{cell},y\n" * 5
    assert len(list(read_file(write(tmp_path / "many.csv", many), limits))) == 6


def test_csv_that_is_not_utf_8_names_the_byte(tmp_path):
    data = b"a,b\n" + f"{100 * 'é'},1\n".encode() * 15_000
    path = write(tmp_path / "a.csv", data + b"\xff,2\n")
    with pytest.raises(DataError, match=f"a.csv: byte {len(data) + 1} is not UTF-8"):
        list(read_file(path))


def test_a_packed_file_that_is_no_text_and_cut_short_is_named(tmp_path):
    packed = gzip.compress(b"a,b\n" + b"\xe9" * 100_000 + bytes(range(256)) * 2000)
    (tmp_path / "a.csv.gz").write_bytes(packed[:-200])
    with pytest.raises(DataError, match=r"a\.csv\.gz: byte \d+ is not UTF-8"):
        list(read_file(tmp_path / "a.csv.gz"))


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("ending", "sample_by"), [
    (".jsonl", "line"), (".txt", "line"), (".txt", "paragraph"), (".txt", "document"),
])  # fmt: skip
def test_empty_lines_without_end_are_refused(tmp_path, ending, sample_by, packing):
    path = tmp_path / f"a{ending}{packing}"
    text = b'{"text": "a"}\n' + (b" " * 99 + b"\n") * 2**14
    if packing == ".zst":
        import pyarrow

        text = pyarrow.compress(text, "zstd", asbytes=True)
    path.write_bytes(gzip.compress(text, 1) if packing == ".gz" else text)
    limits = ReadLimits(row_mb=1)
    with pytest.raises(DataError, match="larger than 1 MB"):
        list(read_file(path, limits, sample_by))
    if sample_by != "document":
        assert len(list(read_file(path, ReadLimits(row_mb=3), sample_by))) == 1


@pytest.mark.extended
def test_a_text_of_short_lines_takes_no_more_memory_than_a_long_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\n" * 2**20)
    tracemalloc.start()
    try:
        ((_, record),) = read_file(path, ReadLimits(), "document")
        assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
    finally:
        tracemalloc.stop()
    assert len(record["text"]) == 2**21


def test_a_record_of_brackets_inside_brackets_is_refused(tmp_path):
    for deep in (130, 900, 100_000):
        path = tmp_path / "a.jsonl"
        path.write_text('{"a": ' + "[" * deep + "]" * deep + "}\n")
        with pytest.raises(DataError, match="not readable JSON: brackets inside"):
            list(read_file(path))


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("https://huggingface.co/datasets/trl-lib/Capybara/tree/main", "write 'trl-lib/Capybara'"),
        ("https://a.org/rows.jsonl", "no address is read: download it"),
        ("s3://bucket/rows.jsonl", "no address is read: download it"),
        ("rows.jsonl", "check data.path"),
    ],
)
def test_an_address_in_a_paths_place_is_answered_with_what_to_write(path, fix):
    with pytest.raises(DataError) as caught:
        list(read_records(path, "train"))
    assert caught.value.faults[0].fix.startswith(fix)
