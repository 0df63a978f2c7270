"""The unigram model of a data folder: what is counted, and what bad options say."""

import pytest

from rt_plugin.pretrain import unigram


def test_break_mode_that_there_is_not(tmp_path, capsys):
    with pytest.raises(SystemExit):
        unigram.main([str(tmp_path), "--sample-break-mode", "complete-doc"])
    assert "invalid choice: 'complete-doc' (choose from" in capsys.readouterr().err
