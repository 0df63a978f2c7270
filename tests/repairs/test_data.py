"""The place in the data on resuming: found, or refused."""

import itertools

import pytest
import torch
from fairseq.data.iterators import EpochBatchIterator

from repair_cases import with_and_without
from rt_plugin import UserError
from rt_plugin.repairs import registry


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, index):
        return index


def read_numbers(processes, iterations=None, states=None, batch_size=2, **options):
    """What all processes read of an epoch of 48 numbers, and their states afterwards."""
    read, after = [], []
    for rank in range(processes):
        batches = [list(range(i, i + batch_size)) for i in range(0, 48, batch_size)]
        iterator = EpochBatchIterator(
            Numbers(), list, batches, num_shards=processes, shard_id=rank, disable_shuffling=False, **options
        )
        if states:
            iterator.load_state_dict(states[0])
        epoch = iterator.next_epoch_itr()
        read += [n for batch in itertools.islice(epoch, iterations) for n in batch]
        after.append(iterator.state_dict())
    return read, after


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.parametrize(("before", "iterations", "now"), [(2, 3, 1), (1, 4, 2), (2, 4, 4), (4, 3, 3), (3, 2, 3)])
def test_process_count_on_resume(before, iterations, now):
    def resume():
        read, states = read_numbers(before, iterations)
        rest, _ = read_numbers(now, states=states)
        if sorted(read + rest) != list(range(48)):
            raise AssertionError("lost or repeated")

    if before == now:
        return resume()
    assert "lost or repeated" in str(with_and_without("process_count_on_resume", resume))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.parametrize("change", [{"batch_size": 4}, {"batch_size": 1}, {"seed": 5}], ids=str)
def test_other_batches_within_an_epoch_are_refused(change):
    """As another --max-tokens or --seed gives: what has been read of the epoch cannot be told by counting."""

    def resume():
        read, states = read_numbers(1, 8)
        rest, _ = read_numbers(1, states=states, **change)
        if sorted(read + rest) != list(range(48)):
            raise AssertionError("lost or repeated")

    with pytest.raises(UserError, match="give the options of that training, .* or begin again at epoch 1"):
        resume()
    with registry.without("process_count_on_resume"), pytest.raises(AssertionError, match="lost or repeated"):
        resume()
    _, states = read_numbers(1)  # at the end of an epoch nothing is in the way
    assert len(read_numbers(1, states=states, **change)[0]) == 48


def test_process_count_without_a_place_to_go_on_is_refused():
    _, states = read_numbers(1, 3)
    with pytest.raises(UserError, match=r"after 3 batches on 1 processes; 2 .* resume with 1 of them, or begin again"):
        read_numbers(2, states=states)
    _, states = read_numbers(2, 2, grouped_shuffling=True)
    with pytest.raises(UserError, match=r"with --grouped-shuffling\); resume with 2 of them"):
        read_numbers(1, states=states, grouped_shuffling=True)


def test_process_count_is_free_between_epochs():
    _, states = read_numbers(3)
    assert sorted(read_numbers(2, states=states)[0]) == list(range(48))
