"""Blocks that are filled over the ends of documents: what is in them, what the model is told, and what is refused."""

import numpy as np
import pytest
import torch
from indexed import batch_iterator, make_task, sentence_lengths, write_split

from rt_plugin.errors import UserError

BOS, EOS = 0, 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("packing") / "data", "train", sentence_lengths(400))


def all_batches(data, **options):
    return list(batch_iterator(make_task(data, **options)).next_epoch_itr(shuffle=False))


@pytest.mark.parametrize("packing", ["joined", "separate"])
def test_blocks_are_full_and_hold_every_token_once(packing, data):
    task = make_task(data, pack_documents=packing)
    task.load_dataset("train")
    blocks = task.dataset("train").blocks
    lengths = [len(block) for block in blocks]
    assert set(lengths[:-1]) == {32}
    tokens = np.fromfile(data / "train.bin", np.uint16).astype(np.int64)
    ours = torch.cat([block[1:] for block in blocks]).numpy()
    blank = (tokens == EOS) & (np.concatenate([[EOS], tokens[:-1]]) == EOS)
    assert blank.sum() == (sentence_lengths(400) == 1).sum()
    assert (ours[blank] == BOS).all()
    assert (ours[~blank] == tokens[~blank]).all()
    assert all(block[0] == BOS for block in blocks)


def test_model_is_told_what_it_is_asked_for(data):
    names = {"attention_documents", "recurrence_documents"}
    for options, expected in (
        ({}, set()),
        ({"pack_documents": "joined"}, set()),
        ({"pack_documents": "separate"}, {"attention_documents"}),
        ({"pack_documents": "joined", "reset_recurrence": True}, {"recurrence_documents"}),
        ({"pack_documents": "separate", "reset_recurrence": True}, names),
    ):
        for batch in all_batches(data, **options):
            inputs = batch["net_input"]
            assert inputs.keys() & names == expected
            for name in expected:
                begins = (inputs["src_tokens"] == BOS).long()
                assert torch.equal(inputs[name], begins.cumsum(1) * (inputs["src_tokens"] != 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pack-documents", "separate", "--arch", "roberta_tiny"), "--pack-documents separate needs a recurrent_rob"),
        (("--reset-recurrence",), "--reset-recurrence needs --pack-documents"),
        (("--pack-documents", "joined", "--shorten-method", "truncate"), "--shorten-method cannot be used with it"),
    ],
)
def test_what_cannot_be_is_one_line(options, message, train_here):
    with pytest.raises(UserError, match=message):
        train_here(*options)


def test_training_with_packed_documents_learns_and_resumes(train_here, tmp_path):
    options = ("--pack-documents", "separate", "--reset-recurrence", "--max-update")
    for folder, updates in (("through", 6), ("resumed", 3), ("resumed", 6)):
        train_here(*options, updates, save_dir=tmp_path / folder)
    a, b = (torch.load(tmp_path / f / "checkpoint_last.pt", weights_only=True)["model"] for f in ("through", "resumed"))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_data_that_are_not_mapped_cannot_be_packed(data, monkeypatch):
    monkeypatch.setattr("rt_plugin.blocks.dataset.TokenFiles.are_there", lambda prefix: False)
    with pytest.raises(UserError, match="fairseq-preprocess's default format"):
        make_task(data, pack_documents="joined").load_dataset("train")
