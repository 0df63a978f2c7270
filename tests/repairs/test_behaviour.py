"""What fairseq does differently with the plugin, on purpose."""

import argparse

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import data_utils
from fairseq.dataclass.configs import CheckpointConfig
from omegaconf import OmegaConf

from encoder_cases import batches, make_model, waits
from repair_cases import with_and_without
from rt_plugin.repairs import registry


@pytest.mark.parametrize("rows", [0, 5, 13, 40, 277])
@pytest.mark.parametrize(
    "limits", [{"max_sentences": 32}, {"max_tokens": 200}, {"max_tokens": 64, "max_sentences": 20}]
)
def test_no_row_is_dropped(rows, limits):
    batches = data_utils.batch_by_size(
        np.arange(rows), lambda i: 10, np.full(rows, 10), required_batch_size_multiple=8, **limits
    )
    assert [i for batch in batches for i in batch] == list(range(rows))
    assert all(len(batch) <= limits.get("max_sentences", 20) for batch in batches)
    assert all(10 * len(batch) <= limits.get("max_tokens", 320) for batch in batches)


def test_last_batch():
    def all_rows():
        batches = data_utils.batch_by_size(
            np.arange(13), lambda i: 1, np.ones(13, dtype=np.int64), max_sentences=32, required_batch_size_multiple=8
        )
        assert sum(map(len, batches)) == 13

    assert isinstance(with_and_without("last_batch", all_rows), AssertionError)


def test_complete_model_folder(tmp_path):
    """Before anything is loaded, and by one process alone."""
    cfg = OmegaConf.structured(CheckpointConfig(save_dir=str(tmp_path)))

    class Task:
        def write_model_folder(self, save_dir):
            written.append(save_dir)

    def load(**changes):
        written.clear()
        trainer = argparse.Namespace(checkpoint_suffix="", task=Task(), data_parallel_rank=0)
        with pytest.raises(AttributeError, match="load_checkpoint"):  # the trainer's
            checkpoint_utils.load_checkpoint(cfg, argparse.Namespace(**{**vars(trainer), **changes}))
        return written

    def load_and_look():
        assert load() == [str(tmp_path)]

    written = []
    with registry.without("stopping_when_asked"):  # it would listen to signals from here on
        assert isinstance(with_and_without("complete_model_folder", load_and_look), AssertionError)
        assert load(data_parallel_rank=1) == []
        cfg.no_save = True
        assert load() == []


def test_one_look_for_padding():
    """roberta computes what fairseq's own does, bit for bit, and waits for a device once."""
    model = make_model("roberta")
    with registry.without("one_look_for_padding"):
        theirs = make_model("roberta")
    assert type(theirs.encoder.sentence_encoder) is not type(model.encoder.sentence_encoder)
    for tokens in batches():
        found, extra = model(tokens, features_only=True, return_all_hiddens=True)
        expected, expected_extra = theirs(tokens, features_only=True, return_all_hiddens=True)
        assert torch.equal(found, expected)
        for state, other in zip(extra["inner_states"], expected_extra["inner_states"], strict=True):
            assert torch.equal(state, other)
        assert waits(model, tokens) == 1
        assert waits(theirs, tokens) == len(theirs.encoder.sentence_encoder.layers) + 1  # one of a value on the CPU
