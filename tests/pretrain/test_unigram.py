"""The unigram model of a data folder: what is counted, and what bad options say."""

import json
import logging

import numpy as np
import pytest
from indexed import sentence_lengths, write_split

from rt_plugin.pretrain import unigram


@pytest.fixture(autouse=True)
def log_as_before():
    """The command silences the log of its process, which here is that of the other tests, too."""
    yield
    logging.disable(logging.NOTSET)


def test_break_mode_that_there_is_not(tmp_path, capsys):
    with pytest.raises(SystemExit):
        unigram.main([str(tmp_path), "--sample-break-mode", "complete-doc"])
    assert "invalid choice: 'complete-doc' (choose from" in capsys.readouterr().err


def test_all_shards_of_the_training_text_are_counted(tmp_path, capsys):
    shards, lengths = [tmp_path / "0", tmp_path / "1"], [sentence_lengths(300), sentence_lengths(200)]
    for number, folder in enumerate(shards):
        write_split(folder, "train", lengths[number], seed=number)
    write_split(shards[0], "valid", lengths[0], seed=2)
    out = tmp_path / "unigram.json"
    assert unigram.main([":".join(map(str, shards)), "--tokens-per-sample", "32", "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == result
    assert result["train_tokens"] == np.sum(lengths[0] - 1) + np.sum(lengths[1] - 1)  # all but </s>
    assert result["valid_tokens"] == np.sum(lengths[0] - 1)
