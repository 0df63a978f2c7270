"""The repair of trainings that do not fit into memory: each ends in one line, and goes on for ever without it."""

import pytest
import torch

from repair_cases import as_exception, with_and_without
from rt_plugin import UserError
from rt_plugin.model import RecurrentRobertaModel

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.93 GiB"


@pytest.fixture
def small_gpu(monkeypatch):
    """Let the forward pass fail as on a GPU that is full, from the second time on, in training or in evaluation; takes
    the error's type."""

    def fill(kind, training=True):
        forward, calls = RecurrentRobertaModel.forward, []

        def forward_once(self, *args, **kwargs):
            if self.training == training:
                calls.append(1)
            if self.training == training and len(calls) > 1:
                raise kind(FULL)
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(RecurrentRobertaModel, "forward", forward_once)
        return calls

    return fill


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory(kind, small_gpu, train_here):
    calls = small_gpu(kind)
    options = ("--max-tokens", "384", "--max-epoch", "1")
    message = rf"^update 2: {FULL}; lower --batch-size 8 or --max-tokens 384 \(of rt-plugin pretrain: --tokens-per-de"

    def train():
        calls.clear()
        with pytest.raises(UserError, match=message):
            train_here(*options)
        assert len(calls) == 2

    assert "DID NOT RAISE" in str(with_and_without("out_of_memory", lambda: as_exception(train)))
    assert len(calls) == 2  # as in the last of the three; without the repair it was all batches of the epoch


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_in_validation(kind, small_gpu, train_here):
    calls = small_gpu(kind, training=False)
    options = ("--max-update", "1", "--batch-size-valid", "4", "--max-tokens-valid", "384")
    message = f"^validation after update 1: {FULL}; lower --batch-size-valid 4 or --max-tokens-valid 384$"

    def train():
        calls.clear()
        with pytest.raises(UserError, match=message):
            train_here(*options, validate=True)
        assert len(calls) == 3  # the first batch, and the second one twice

    assert FULL in str(with_and_without("out_of_memory", train))
