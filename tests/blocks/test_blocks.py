"""Blocks and batches from arrays: the same as fairseq's, bit for bit, also on resuming; shards that come and go."""

import gc
import itertools
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq.data import TokenBlockDataset
from fairseq.data.iterators import EpochBatchIterator
from indexed import batch_iterator, make_task, sentence_lengths, write_split
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from rt_plugin.blocks import cutting, dataset
from rt_plugin.blocks.batches import BatchIterator
from rt_plugin.console.checksums import write_checksums
from rt_plugin.console.files import sha256
from rt_plugin.errors import UserError

BREAK_MODES = ("none", "complete", "complete_doc", "eos")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("blocks") / "data", "train", sentence_lengths(700))


@pytest.fixture
def by_fairseq(monkeypatch):
    """Makes `batch_iterator` take fairseq's way: lists of arrays in every process, from its own data sets.

    Its iterators are rings of references: left to the garbage collector, each would wait 5 seconds for its worker.
    """

    def make(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(dataset.TokenFiles, "are_there", lambda prefix: False)
            iterator = batch_iterator(*arguments, **options)
        assert type(iterator) is EpochBatchIterator
        return iterator

    yield make
    for workers in [found for found in gc.get_objects() if type(found) is _MultiProcessingDataLoaderIter]:
        workers._shutdown_workers()


def assert_same(a, b):
    """Two batches, or what they consist of."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif torch.is_tensor(a):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("mode", BREAK_MODES)
@pytest.mark.parametrize("chunk", [1, 2, 7, 100, 10_000])
def test_blocks_are_those_that_fairseq_cuts(mode, chunk):
    lengths = sentence_lengths(500)
    parts = lengths if mode == "none" else cutting.split_sentences(lengths, 31)
    reference = TokenBlockDataset(np.zeros(len(parts)), parts, 31, pad=1, eos=2, break_mode=mode)
    starts, sizes = cutting.cut_blocks(lengths, 31, mode, chunk)
    assert starts.tolist() == reference.slice_indices[:, 0].tolist()
    assert (starts + sizes).tolist() == reference.slice_indices[:, 1].tolist()
    assert sizes.dtype == reference.sizes.dtype


@pytest.mark.parametrize(
    ("task_options", "options"),
    [
        *(({"sample_break_mode": mode}, {}) for mode in BREAK_MODES),
        ({}, {"max_tokens": None, "max_sentences": 5, "required_batch_size_multiple": 8}),
        ({}, {"required_batch_size_multiple": 8, "num_shards": 3, "shard_id": 2}),
        ({}, {"num_shards": 2, "shard_id": 1, "grouped_shuffling": True}),
        ({}, {"max_positions": 20, "num_shards": 4, "shard_id": 3}),
        ({"mask_whole_words": False, "mask_multiple_length": 3}, {"skip_remainder_batch": True}),
    ],
)
def test_batches_are_those_of_fairseq(task_options, options, data, by_fairseq):
    ours = batch_iterator(make_task(data, **task_options), **options)
    theirs = by_fairseq(make_task(data, **task_options), **options)
    assert type(ours) is BatchIterator
    for shuffle in (True, True, False):
        pairs = list(itertools.zip_longest(ours.next_epoch_itr(shuffle), theirs.next_epoch_itr(shuffle)))
        for a, b in pairs:
            assert_same(a, b)
        assert len(pairs) >= 3
        assert ours.state_dict() == theirs.state_dict()
    assert_same(ours.first_batch, theirs.first_batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_goes_on_in_the_other_ones_place(workers, data, by_fairseq):
    """A checkpoint of a training with fairseq's lists goes on with the arrays, and the other way round."""
    makers = {"ours": batch_iterator, "fairseq's": by_fairseq}
    for before, after in (("ours", "ours"), ("ours", "fairseq's"), ("fairseq's", "ours")):
        iterator = makers[before](make_task(data), epoch=2, num_workers=workers)
        batches = iterator.next_epoch_itr()
        for _ in range(4):
            next(batches)
        state, rest = iterator.state_dict(), list(batches)
        resumed = makers[after](make_task(data), epoch=2, num_workers=workers)
        resumed.load_state_dict(state)
        again = list(resumed.next_epoch_itr())
        assert len(again) == len(rest) > 3
        for a, b in zip(again, rest, strict=True):
            assert_same(a, b)
        other = makers[after](make_task(data), epoch=2, max_tokens=150)
        with pytest.raises(UserError, match="data would be lost"):
            other.load_state_dict(state)


@pytest.fixture
def forkserver():
    """As Python 3.14 starts processes, where nothing else is asked for."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_workers_that_start_from_nothing_read_the_same(forkserver, data, by_fairseq):
    """fairseq's data sets, too, which take fairseq with them before anything of the plugin."""
    here = list(batch_iterator(make_task(data)).next_epoch_itr())
    there = [make(make_task(data), num_workers=1).next_epoch_itr() for make in (batch_iterator, by_fairseq)]
    for batches in there:
        for a, b in zip(batches, here, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_masks_change_from_epoch_to_epoch_in_workers_too(workers, data):
    """fairseq keeps the workers of the first epoch, and with them its masks."""

    def batches(workers):
        iterator = batch_iterator(make_task(data), num_workers=workers)
        return [list(iterator.next_epoch_itr(shuffle=False)) for _ in range(3)]

    epochs = batches(workers)
    for a, b in zip(epochs, batches(0), strict=True):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    assert not torch.equal(epochs[0][0]["target"], epochs[1][0]["target"])


def test_data_are_not_read_at_the_start(tmp_path):
    folder = write_split(tmp_path / "data", "train", sentence_lengths(100))
    for _ in range(2):  # once the blocks are made, once they are there
        task = make_task(folder)
        assert len(batch_iterator(task)) > 3
        assert not mapped(folder / "train.bin")
    assert not mapped(folder / "train.idx")
    assert len(task.dataset("train")[0]["net_input.src_tokens"]) == len(task.dataset("train").blocks[0])
    assert mapped(folder / "train.bin")


def mapped(path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("damage", ["cut off", "longer", "gone"])
def test_data_that_do_not_fit_their_index_are_named(damage, data, tmp_path):
    folder = write_split(tmp_path / "data", "train", sentence_lengths(100))
    tokens = folder / "train.bin"
    if damage == "gone":
        tokens.unlink()
    else:
        tokens.write_bytes(tokens.read_bytes()[:-2] if damage == "cut off" else tokens.read_bytes() + b"12")
    with pytest.raises(UserError, match="train.bin"):
        batch_iterator(make_task(folder))


def test_an_id_of_another_dictionary_late_in_the_data(tmp_path):
    folder = write_split(tmp_path / "data", "train", [1 << 20] * 17)
    with (folder / "train.bin").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.array([9999], np.uint16).tobytes())
    with pytest.raises(UserError, match="train.bin: found token id 9999, and the dictionary has 54 symbols"):
        batch_iterator(make_task(folder))


def test_blocks_longer_than_the_model_takes(data):
    with pytest.raises(UserError, match="more than the 20 that the model takes"):
        batch_iterator(make_task(data), max_positions=20, ignore_invalid_inputs=False)
    with pytest.raises(UserError, match="none of its"):
        batch_iterator(make_task(data, sample_break_mode="none"), max_positions=2)


def test_blocks_longer_than_a_batch(data):
    message = "a block has 32 tokens, more than the 20 of a batch; raise --max-tokens .*or lower --tokens-per-sample"
    with pytest.raises(UserError, match=message):
        batch_iterator(make_task(data), max_tokens=20)
    assert len(batch_iterator(make_task(data), max_tokens=32)) > 3
    assert len(batch_iterator(make_task(data), max_tokens=20, max_positions=20)) > 3  # they are left out


def test_data_without_a_block_are_named(tmp_path):
    folder = write_split(tmp_path / "data", "train", np.ones(5, np.int32))
    with pytest.raises(UserError, match="no block of text"):
        batch_iterator(make_task(folder))


@pytest.fixture
def shards(tmp_path):
    return [write_split(tmp_path / f"shard{i}", "train", sentence_lengths(300, i), seed=i) for i in range(4)]


def files_by_kind(shard):
    """train.blocks, train.batches, train.checksums -> the file, of those that are complete."""
    paths = (shard / "blocks").glob("train.*")
    return {path.stem: path for path in paths if path.suffix != ".tmp"}


def test_the_next_shard_is_worked_out_while_this_one_trains(shards):
    """Its blocks, its batches, and whether it is as the list of its folder says."""
    write_checksums(shards[1], {name: sha256(shards[1] / name) for name in ("train.bin", "train.idx")})
    task = make_task(*shards)
    iterator = batch_iterator(task, epoch=1, disable_iterator_cache=True)
    deadline = time.monotonic() + 120
    while not (finished := files_by_kind(shards[1])).keys() >= {"train.checksums", "train.blocks", "train.batches"}:
        assert time.monotonic() < deadline, finished
        time.sleep(0.1)
    before = {path: path.stat().st_ino for path in finished.values()}
    assert not (shards[2] / "blocks").exists()
    iterator = batch_iterator(task, epoch=2, disable_iterator_cache=True)
    assert {path: path.stat().st_ino for path in files_by_kind(shards[1]).values()} == before
    assert len(list(iterator.next_epoch_itr())) == len(iterator) > 3


def test_of_the_processes_of_a_machine_one_works_ahead(shards, monkeypatch):
    """Those that fairseq spawns itself have no LOCAL_RANK: the group that they form tells which is first."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for rank, first in ((1, False), (3, False), (2, True)):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        task = make_task(*shards)
        batch_iterator(task, epoch=1, disable_iterator_cache=True)
        assert (task._ahead._process is not None) == first, rank


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_that_were_read_are_released(workers, shards, monkeypatch):
    """Without the help of the garbage collector, which may come by hours later."""
    monkeypatch.setattr("rt_plugin.blocks.ahead.Ahead.prepare", lambda *_: None)
    task, options = make_task(*shards), {"disable_iterator_cache": True, "num_workers": workers}
    gc.collect()
    gc.disable()
    try:
        iterator = batch_iterator(task, epoch=1, **options)
        for epoch in range(1, 5):
            for _ in iterator.next_epoch_itr():
                pass
            iterator.first_batch  # noqa: B018  (the trainer asks for it)
            iterator = batch_iterator(task, epoch=epoch + 1, **options)
            held = [i for i, shard in enumerate(shards) if mapped(shard / "train.bin") or mapped(shard / "blocks")]
            assert held == [epoch % 4]
    finally:
        gc.enable()
