"""Batches of blocks as arrays, in fairseq's order, and an iterator over them that keeps fairseq's ways."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from fairseq.data import data_utils
from fairseq.data.iterators import EpochBatchIterator

from rt_plugin.blocks.dataset import BlockDataset
from rt_plugin.blocks.stored import stored_arrays
from rt_plugin.errors import UserError


@dataclass(frozen=True)
class BatchOptions:
    """What the batches of a split depend on, beside its blocks.

    Attributes:
        seed: of the order of blocks of one length.
        max_tokens, max_sentences: the most of a batch, padding included; None: any number.
        multiple: batches have a multiple of so many blocks, where they can.
        max_positions: longer blocks are left out; None: none is.
        skip_too_long: False: they are an error.
    """

    seed: int
    max_tokens: int | None = None
    max_sentences: int | None = None
    multiple: int = 1
    max_positions: int | None = None
    skip_too_long: bool = False

    def key(self, blocks_key: dict) -> dict:
        """What the batches of the blocks with that key depend on."""
        return {**blocks_key, **{f"batch_{name}": value for name, value in asdict(self).items()}}


class Batches(Sequence):
    """Batches as two arrays; items are (blocks,) int64, the numbers of the blocks.

    Args:
        order: the blocks of all batches in a row.
        offsets: (batches + 1,) where each begins in `order`.
    """

    def __init__(self, order: np.ndarray, offsets: np.ndarray):
        self._order, self._offsets = order, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> np.ndarray:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number = int(number) % len(self)
        return self._order[self._offsets[number] : self._offsets[number + 1]].astype(np.int64)

    @property
    def sizes(self) -> np.ndarray:
        """(batches,) int64 blocks of each."""
        return np.diff(self._offsets)

    @property
    def blocks(self) -> int:
        """Of all batches together."""
        return len(self._order)


def load_batches(blocks: BlockDataset, options: BatchOptions) -> Batches:
    """The batches that fairseq makes of the blocks, kept beside them.

    Raises:
        UserError: a block is too long, or none is left.
    """
    key, sizes = options.key(blocks.key), np.asarray(blocks.sizes)
    arrays = stored_arrays(blocks.folder, f"{blocks.name}.batches", key, lambda: make_batches(sizes, options))
    batches = Batches(arrays["order"], arrays["offsets"])
    if not len(batches):
        raise UserError(
            f"{blocks.files.data}: none of its {len(blocks):,} blocks has at most {options.max_positions} tokens; "
            "lower --tokens-per-sample, or raise --max-positions or --max-tokens"
        )
    return batches


def make_batches(sizes: np.ndarray, options: BatchOptions) -> dict[str, np.ndarray]:
    """order: the blocks of all batches in a row; offsets: (batches + 1,) where each batch begins in `order`.

    Raises:
        UserError: a block is too long and must not be left out, or longer than a batch may be.
    """
    order = order_by_size(sizes, options.seed)
    if options.max_positions is not None:
        fits = sizes[order] <= options.max_positions
        if not fits.all() and not options.skip_too_long:
            raise UserError(
                f"a block has {sizes.max()} tokens, more than the {options.max_positions} that the model takes; lower "
                "--tokens-per-sample, or leave such blocks out with --skip-invalid-size-inputs-valid-test"
            )
        order = order[fits]
    longest = sizes[order[-1]] if len(order) else 0  # they are in the order of their sizes
    if options.max_tokens is not None and longest > options.max_tokens:
        raise UserError(
            f"a block has {longest} tokens, more than the {options.max_tokens} of a batch; raise --max-tokens "
            "(of validation: --max-tokens-valid), or lower --tokens-per-sample"
        )
    batches = data_utils.batch_by_size(
        order,
        num_tokens_fn=None,
        num_tokens_vec=sizes[order].astype(np.int64),
        max_tokens=options.max_tokens,
        max_sentences=options.max_sentences,
        required_batch_size_multiple=options.multiple,
    )
    offsets = np.zeros(len(batches) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, batches), np.int64, len(batches)), out=offsets[1:])
    used = order[: offsets[-1]]  # batches follow the order
    return {"order": used.astype(np.uint32 if len(sizes) < 2**32 else np.int64), "offsets": offsets}


def order_by_size(sizes: np.ndarray, seed: int) -> np.ndarray:
    """(blocks,) int64: by size, blocks of one size in random order.

    The same as np.lexsort([permutation, sizes]), fairseq's way, in a tenth of the time: radix sort of small numbers.
    """
    with data_utils.numpy_seed(seed):
        rank = np.random.permutation(len(sizes))
    shuffled = np.empty_like(rank)
    shuffled[rank] = np.arange(len(rank))
    return shuffled[np.argsort(sizes[shuffled], kind="stable")]


class _Chosen(Sequence):
    """Some of the batches, by number; -1 is an empty one."""

    def __init__(self, batches: Batches, numbers: np.ndarray):
        self._batches, self._numbers = batches, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return _Chosen(self._batches, self._numbers[index])
        number = self._numbers[index]
        return self._batches[number] if number >= 0 else []

    def __iter__(self) -> Iterator:
        return (self[i] for i in range(len(self)))


class BatchIterator(EpochBatchIterator):
    """fairseq's EpochBatchIterator over `Batches`: the same batches in the same order, without a list of them.

    Args:
        dataset, collate_fn and the options: as in fairseq.
        batches: of the data set.
    """

    def __init__(self, dataset, collate_fn, batches: Batches, **options):
        super().__init__(dataset, collate_fn, (), **options)
        self._frozen_batches = batches

    def ordered_batches(self, epoch: int, fix_batches_to_gpus: bool, shuffle: bool) -> Sequence:
        """The batches of this process in an epoch, in their order; an empty one at the end where others have more."""
        numbers = np.arange(len(self.frozen_batches), dtype=np.int32)
        if shuffle:
            with data_utils.numpy_seed(self.seed + epoch):
                numbers = self._shuffled_in_groups(numbers) if self.grouped_shuffling else _shuffled(numbers)
        share = np.full(-(-len(numbers) // self.num_shards), -1, np.int32)
        own = numbers[self.shard_id :: self.num_shards]
        share[: len(own)] = own
        return _Chosen(self.frozen_batches, share)

    def _shuffled_in_groups(self, numbers: np.ndarray) -> np.ndarray:
        groups = _shuffled(np.arange(len(numbers) // self.num_shards))
        return numbers[: len(groups) * self.num_shards].reshape(-1, self.num_shards)[groups].reshape(-1)

    def _get_iterator_for_epoch(self, *args, **kwargs):
        iterator = super()._get_iterator_for_epoch(*args, **kwargs)
        # A sampler that holds on to this object would keep it, and the data, until the garbage collector comes by.
        method = weakref.WeakMethod(self.ordered_batches)
        self.epoch_batch_sampler.ordered_batches = lambda *arguments: method()(*arguments)
        return iterator


def _shuffled(numbers: np.ndarray) -> np.ndarray:
    np.random.shuffle(numbers)  # draws the same random numbers for an array as for a list
    return numbers
