"""Streamed rows: in a buffer's order by the seed, from any place on, held nowhere."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from itertools import count, islice

import pytest
from llmft_alignments.sft import CompletionLoss
from llmft_datasets.jsonl import Jsonl

from llmft.api import Encoded
from llmft.api.errors import CheckpointError, DataError
from llmft.api.train_settings import TrainSettings
from llmft.data.packing import PackedObjective, pack
from llmft.data.stage_rows import leave_out_by_tokens, stage_rows
from llmft.data.streaming import Stream, StreamedItems
from llmft.data.usable_rows import Rows
from llmft.modeling.tiny_models import tiny_llama
from llmft.recipes.recipe import Stage
from llmft.training import loop


@pytest.fixture
def path(tmp_path):
    return written(tmp_path / "rows.jsonl", range(10))


def written(path, texts):
    path.write_text("".join(json.dumps({"text": str(text)}) + "\n" for text in texts))
    return path


def dataset(path, buffer_size=4, **more) -> Jsonl:
    made = {"method": "jsonl", "path": str(path), "columns": {"text": "text"}, "streaming": True}
    return Jsonl(Jsonl.Config(**{**made, "buffer_size": buffer_size, **more}))


def items(path, seed=0, **more) -> StreamedItems:
    return StreamedItems(
        Stream(dataset(path, **more)), seed, lambda rows: [int(row.text) for row in rows]
    )


def test_each_pass_gives_every_row_once_shuffled_within_a_buffer(path):
    stream = items(path)
    passes = [stream.take(10) for _ in range(3)]
    for taken in passes:
        buffers = [taken[:4], taken[4:8], taken[8:]]
        assert [sorted(one) for one in buffers] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert passes[0] != list(range(10))
    assert passes[0] != passes[1]
    assert items(path).take(30) == [row for one in passes for row in one]
    assert items(path, seed=1).take(10) != passes[0]
    assert items(path, buffer_size=1).take(12) == [*range(10), 0, 1]


def test_rows_that_are_not_shuffled_are_in_the_files_order_and_packed_in_it(path):
    def stream(made):
        return StreamedItems(Stream(dataset(path)), 0, made, shuffled=False)

    assert stream(lambda rows: [int(row.text) for row in rows]).take(14) == [*range(10), *range(4)]
    packed = stream(lambda rows: [int(row.text) for row in rows]).grouped(
        lambda items: [tuple(items[i : i + 2]) for i in range(0, len(items), 2)]
    )
    assert packed.take(5) == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]


@pytest.mark.parametrize("taken", range(0, 27, 3))
@pytest.mark.parametrize("more", [{}, {"limit": 7}, {"buffer_size": 1}, {"split": "train[2:9]"}])
def test_a_stream_goes_on_from_any_place_as_if_it_had_not_stopped(path, taken, more):
    whole = items(path, **more).take(taken + 20)
    first = items(path, **more)
    first.take(taken)
    state = json.loads(json.dumps(first.state()))
    again = items(path, **more)
    again.restore(state)
    assert again.take(20) == whole[taken:]
    first.restore(state)  # one that has read ahead, too
    assert first.take(20) == whole[taken:]


def test_one_buffer_is_read_ahead_and_no_more_is_held(tmp_path):
    read = []

    class Endless(Jsonl):
        def records(self, split):
            for number in count():
                read.append(number)
                yield f"x:{number}", {"text": str(number)}

        def pin(self):
            return ""

    made = Endless(dataset("x.jsonl").config)
    stream = StreamedItems(Stream(made), 0, lambda rows: [int(row.text) for row in rows])
    assert sorted(stream.take(12)) == list(range(12))
    until(lambda: len(read) == 16)
    assert stream.take(1) + stream.take(3)  # the last ones of that buffer
    until(lambda: len(read) == 20)
    read.clear()
    found, _ = stage_rows(stage(max_steps=3), made, 0)
    assert [row.text for row in found.rows] == ["0", "1", "2", "3"]
    assert len(read) == 4


def until(true) -> None:
    """Wait for a thread; fail where it does not come to it."""
    for _ in range(2000):
        if true():
            return
        time.sleep(0.005)
    raise AssertionError("it does not come to it")


def test_the_next_buffer_is_made_while_this_one_is_taken_and_by_one_thread(path):
    threads = []

    class Watched(Jsonl):
        def records(self, split):
            for record in super().records(split):
                threads.append(threading.get_ident())
                yield record

    made = []

    def make(rows):
        made.append(sorted(int(row.text) for row in rows))
        threads.append(threading.get_ident())
        return [int(row.text) for row in rows]

    stream = StreamedItems(Stream(Watched(dataset(path).config)), 0, make)
    assert sorted(stream.take(1) + stream.take(3)) == [0, 1, 2, 3]
    stream.take(1)
    until(lambda: len(made) == 3)
    assert made == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert stream.state() == {"epoch": 0, "record": 4, "taken": 1}, "of what was taken"
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    name = next(one.name for one in threading.enumerate() if one.ident == threads[0])
    del stream
    until(lambda: threads[0] not in [one.ident for one in threading.enumerate()])
    assert name == "llmft-stream"


def test_an_error_ahead_is_raised_where_its_rows_are_taken(path):
    written(path, [*range(8), "", 9])
    stream = items(path)
    made = stream._filled()
    until(lambda: stream._ahead._done.qsize() == 1)
    assert len(made.order) == 4
    assert len(stream.take(8)) == 8
    with pytest.raises(DataError, match="rows cannot be used"):
        stream.take(1)


def stage(evaluate=None, **train) -> Stage:
    data = {"method": "jsonl"}
    return Stage.model_validate(
        {"name": "s", "data": data, "alignment": {"method": "sft"}, "train": train}
        | ({"evaluate": evaluate} if evaluate else {})
    )


def test_bad_and_dropped_rows_are_no_rows_and_the_next_buffer_begins_after_them(path):
    written(path, [0, "", 1, 2, "", "333", 3, 4])
    with pytest.raises(DataError, match="1 of 4 rows cannot be used"):
        items(path, buffer_size=3).take(1)
    drop = {"where": [{"column": "text", "equals": "333"}]}
    skipping = {"on_bad_row": "skip", "buffer_size": 3, "drop": drop}
    stream = items(path, **skipping)
    first = stream.take(3)
    assert sorted(first) == [0, 1, 2]
    assert stream.state() == {"epoch": 0, "record": 4, "taken": 0}
    assert sorted(stream.take(2)) == [3, 4]
    assert stream.take(3) == items(path, **skipping).take(8)[5:]
    with pytest.raises(DataError, match=r"max_bad_rows: 0\.2"):
        items(path, **skipping, max_bad_rows=0.2).take(1)


def test_data_without_rows_end_nothing_in_a_loop(path):
    written(path, ["", ""])
    with pytest.raises(DataError, match="has no rows that can be used"):
        items(path, on_bad_row="skip").take(1)


def test_a_length_leaves_out_rows_of_each_buffer(path):
    from llmft.data.encoding import Encoder
    from llmft.modeling.tiny_models import tiny_tokenizer

    written(path, [1, 22, 3, 44, 5])
    made = dataset(path, drop={"shorter_than": 3})

    def prepare(rows: Rows) -> None:
        leave_out_by_tokens(rows, made, lambda: Encoder(tiny_tokenizer(), None))

    stream = StreamedItems(Stream(made, prepare), 0, lambda rows: [row.text for row in rows])
    assert sorted(stream.take(2)) == ["22", "44"]


def test_a_change_of_a_file_is_seen_by_its_size_and_its_ends(path):
    def digest() -> str:
        return stage_rows(stage(max_steps=1), dataset(path), 0)[0].digest

    before, text = digest(), path.read_text()
    assert digest() == before
    path.write_text(text.replace('"9"', '"8"'))  # not in the first buffer
    assert digest() != before
    path.write_text(text + text)
    assert digest() != before
    path.write_text(text)
    assert digest() == before


def test_the_loop_takes_the_next_items_and_goes_on_from_a_checkpoint(path, tmp_path):
    from llmft.training.checkpoints import Checkpoints

    def encoded(rows):
        return [Encoded(ids := tuple(b"abc" + row.text.encode()), ids, row.origin) for row in rows]

    def stream():
        made = StreamedItems(Stream(dataset(path)), 0, encoded)
        return made.grouped(lambda rows: pack(rows, 8))

    def trained(steps, place, **more):
        settings = TrainSettings(
            max_steps=steps, per_device_train_batch_size=1, gradient_accumulation_steps=2,
            save_strategy="steps", save_steps=3, lr_scheduler_type="constant",
        )  # fmt: skip
        checkpoints = Checkpoints(tmp_path / place, "r", {})
        model = tiny_llama()
        loop.train(model, stream(), PackedObjective(CompletionLoss()), settings, seed=0,
                   checkpoints=checkpoints, **more)  # fmt: skip
        return {name: p.detach().clone() for name, p in model.named_parameters()}, checkpoints

    whole, _ = trained(7, "whole")
    _, checkpoints = trained(3, "stopped")
    saved = checkpoints.newest()
    # 6 bins are taken, and a pass has 2, 2 and 1 of them.
    assert (saved.step, saved.facts["stream"]) == (3, {"epoch": 1, "record": 0, "taken": 1})
    resumed, _ = trained(7, "resumed", saved=saved)
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_bins_are_those_of_a_buffer(path):
    written(path, [1, 22, 333, 4444, 5, 66])
    stream = StreamedItems(
        Stream(dataset(path, buffer_size=3)), 0,
        lambda rows: [Encoded(tuple(row.text.encode()), (), row.text) for row in rows],
    ).grouped(lambda rows: pack(rows, 4))  # fmt: skip
    bins = stream.take(4)
    assert Counter(tuple(sorted(row.origin for row in bin)) for bin in bins) == Counter(
        [("1", "333"), ("22",), ("4444",), ("5", "66")]
    )


def test_the_first_records_are_not_held_by_a_stream_that_skips_them(path):
    stream = Stream(dataset(path))
    assert [row.text for row in stream.read(8).rows] == ["8", "9"]
    assert stream.read(10).rows == []
    assert [row.text for row in islice(stream.read(0).rows, 2)] == ["0", "1"]


@pytest.mark.parametrize("place", [
    {"taken": 5}, {"taken": -1}, {"record": -2}, {"record": 10**30}, {"epoch": "0"},
    {"record": True}, {"taken": 1.0}, {"epoch": None}, {"record": [0]},
])  # fmt: skip
def test_a_place_that_the_data_does_not_have_is_refused(path, place):
    stream = items(path)

    def go_on():
        stream.restore({"epoch": 0, "record": 0, "taken": 0} | place)
        stream.take(1)

    with pytest.raises(CheckpointError, match="place in the streamed data is none") as caught:
        go_on()
    assert caught.value.faults[0].code == "E401"
    for state in ([], {}, None, "x"):
        with pytest.raises(CheckpointError, match="place in the streamed data is none"):
            items(path).restore(state)
    stream.restore({"epoch": 0, "record": 4, "taken": 4})  # a buffer's end is a place
    assert sorted(stream.take(2)) == [8, 9]
