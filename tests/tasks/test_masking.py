"""Masking: shares, special tokens, whole words, spans, and that masks follow from seed, epoch and index alone."""

import math

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from scipy import stats

from rt_plugin.errors import UserError
from rt_plugin.tasks.masking import MaskedDataset, Masker
from rt_plugin.tasks.rt_masked_lm import RtMaskedLMConfig, RtMaskedLMTask

LENGTH, BLOCKS = 127, 1500
LEAST_PROBABILITY = 1e-4  # of a result as far off as this one; seeds are fixed, so a test that passes always passes


@pytest.fixture(scope="module")
def dictionary():
    dictionary = Dictionary()
    for i in range(300):
        dictionary.add_symbol(f"▁w{i}" if i % 3 else f"w{i}", n=i % 7)
    dictionary.add_symbol("<mask>")
    return dictionary


def masker(dictionary, **options):
    return Masker(dictionary, dictionary.index("<mask>"), **options)


@pytest.fixture(scope="module")
def blocks(dictionary):
    """(BLOCKS, LENGTH) sentences of 12 tokens between <s> and </s>, with an <unk> here and there."""
    tokens = np.random.default_rng(0).integers(dictionary.nspecial, dictionary.nspecial + 300, (BLOCKS, LENGTH))
    tokens[:, 0], tokens[:, 13::13], tokens[:, 40] = dictionary.bos(), dictionary.eos(), dictionary.unk()
    return torch.from_numpy(tokens)


def mask_all(mask, blocks, epoch=1):
    pairs = [mask(block, epoch, index) for index, block in enumerate(blocks)]
    return tuple(torch.stack(side) for side in zip(*pairs, strict=True))


def assert_share(count, total, share):
    assert stats.binomtest(int(count), int(total), share).pvalue > LEAST_PROBABILITY, (count / total, share)


@pytest.mark.parametrize("options", [{}, {"mask_prob": 0.4, "leave_unmasked_prob": 0.0, "random_token_prob": 0.3}])
def test_shares_are_those_asked_for(options, dictionary, blocks):
    source, target = mask_all(masker(dictionary, **options), blocks)
    chosen = target != dictionary.pad()
    maskable = ~torch.isin(blocks, torch.tensor([dictionary.bos(), dictionary.eos()]))
    assert (target[chosen] == blocks[chosen]).all()
    assert (source[~chosen] == blocks[~chosen]).all()
    number = maskable[0].sum().item() * options.get("mask_prob", 0.15)
    per_block = chosen.sum(1)
    assert set(per_block.tolist()) <= {math.floor(number), math.ceil(number)}
    assert_share((per_block == math.ceil(number)).sum(), BLOCKS, number % 1)
    random_share, left = options.get("random_token_prob", 0.1), options.get("leave_unmasked_prob", 0.1)
    assert_share((source[chosen] == dictionary.index("<mask>")).sum(), chosen.sum(), 1 - random_share - left)
    # a random token is by chance the token itself, one time in 300
    assert_share((source[chosen] == blocks[chosen]).sum(), chosen.sum(), left + random_share / 300)


def test_every_position_is_masked_as_often(dictionary, blocks):
    _, target = mask_all(masker(dictionary), blocks)
    counts = (target != dictionary.pad()).sum(0).numpy()
    counts = counts[counts > 0]
    assert len(counts) == LENGTH - 1 - 9  # all but <s> and nine </s>
    assert stats.chisquare(counts).pvalue > LEAST_PROBABILITY


@pytest.mark.parametrize("weighted", [False, True])
def test_random_tokens_are_no_special_ones(weighted, dictionary, blocks):
    options = {"random_token_prob": 1.0, "leave_unmasked_prob": 0.0, "freq_weighted_replacement": weighted}
    source, target = mask_all(masker(dictionary, **options), blocks)
    counts = np.bincount(source[target != dictionary.pad()].numpy(), minlength=len(dictionary))
    assert not counts[: dictionary.nspecial].any()
    assert not counts[dictionary.index("<mask>")]
    drawn = counts[dictionary.nspecial : -1]
    weights = np.arange(300) % 7 if weighted else np.ones(300)
    assert not drawn[weights == 0].any()
    expected = weights[weights > 0] / weights.sum() * drawn.sum()
    assert stats.chisquare(drawn[weights > 0], expected).pvalue > LEAST_PROBABILITY


@pytest.mark.parametrize("options", [{}, {"whole_words": True}, {"span_length": 4, "span_stdev": 2.0}])
def test_special_tokens_are_never_masked(options, dictionary, blocks):
    source, target = mask_all(masker(dictionary, mask_prob=0.9, **options), blocks)
    special = torch.isin(blocks, torch.tensor([dictionary.bos(), dictionary.eos()]))
    assert (source[special] == blocks[special]).all()
    assert (target[special] == dictionary.pad()).all()
    assert (target != dictionary.pad()).sum() > 0.3 * target.numel()
    nothing = torch.tensor([dictionary.bos(), dictionary.eos()])
    assert [side.tolist() for side in masker(dictionary, **options)(nothing, 1, 0)] == [[0, 2], [1, 1]]


def words_of(dictionary, block):
    """The positions of each word, told from the symbols."""
    words, symbol_before = [], ""
    for position, token in enumerate(block.tolist()):
        symbol = dictionary[token]
        if symbol not in ("<s>", "</s>"):
            if symbol.startswith("▁") or symbol == "<unk>" or symbol_before in ("<s>", "</s>"):
                words.append([])
            words[-1].append(position)
        symbol_before = symbol
    return words


def test_words_are_masked_whole(dictionary, blocks):
    mask = masker(dictionary, whole_words=True, mask_prob=0.3)
    masked = together = number = 0
    for index, block in enumerate(blocks[:300]):
        source, target = mask(block, 1, index)
        words = words_of(dictionary, block)
        number += len(words)
        for word in words:
            chosen = (target[word] != dictionary.pad()).tolist()
            hidden = (source[word] == dictionary.index("<mask>")).tolist()
            assert len(set(chosen)) == len(set(hidden)) == 1
            masked += chosen[0]
            together += chosen[0] and len(word) > 1
    assert together > 100
    assert_share(masked, number, 0.3)


@pytest.mark.parametrize(("stdev", "lengths"), [(0.0, {5}), (1.5, {3, 4, 5, 6, 7})])
def test_spans_have_the_length_asked_for(stdev, lengths, dictionary, blocks):
    plain = blocks[:, :1].expand(-1, 400).clone().fill_(10)  # no special token cuts a span
    _, target = mask_all(masker(dictionary, mask_prob=0.02, span_length=5, span_stdev=stdev), plain)
    runs = [len(run) for row in target.eq(10).tolist() for run in "".join("x" if t else " " for t in row).split()]
    assert sum(run in lengths for run in runs) > 0.8 * len(runs)
    assert np.mean(runs) == pytest.approx(5, abs=0.3)
    assert 0.015 < target.eq(10).float().mean() < 0.02


def test_masks_follow_from_seed_epoch_and_index(dictionary, blocks):
    def hidden(seed, epoch, index):
        return masker(dictionary, seed=seed)(blocks[0], epoch, index)[1].tolist()

    assert hidden(1, 1, 0) == hidden(1, 1, 0)
    different = [hidden(1, 1, 0), hidden(2, 1, 0), hidden(1, 2, 0), hidden(1, 1, 1), hidden(-1, 1, 0)]
    assert len(set(map(tuple, different))) == len(different)


@pytest.fixture(scope="module")
def task(data_bin):
    cfg = OmegaConf.structured(RtMaskedLMConfig(data=str(data_bin), tokens_per_sample=64, seed=3))
    cfg.sample_break_mode = "complete_doc"
    task = RtMaskedLMTask.setup_task(cfg)
    task.load_dataset("train")
    return task


def test_reading_again_after_an_epoch_gives_the_new_mask(task):
    dataset, seen = task.dataset("train"), {}
    for epoch in (1, 2, 1):
        dataset.set_epoch(epoch)
        item = dataset[5]  # the same index again, right behind the change
        pair = (tuple(item["net_input.src_tokens"].tolist()), tuple(item["target"].tolist()))
        assert seen.setdefault(epoch, pair) == pair
        restored = np.where(np.array(pair[1]) == 1, pair[0], pair[1])
        assert task.dictionary.index("<mask>") not in restored
    assert seen[1] != seen[2]


def test_batches_hold_documents_masks_and_padding(task):
    dataset = task.dataset("train")
    batch = dataset.collater([dataset[i] for i in range(8)])
    source, target = batch["net_input"]["src_tokens"], batch["target"]
    assert source.shape == target.shape
    assert (source[:, 0] == task.dictionary.bos()).all()
    assert batch["ntokens"] == source.ne(1).sum()
    assert (target[source == task.dictionary.index("<mask>")] != 1).all()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("mask_prob", 1.5, "--mask-prob 1.5: expected a number between 0 and 1"),
        ("random_token_prob", 0.95, "--random-token-prob 0.95: expected a number from 0 to 1, at most 1 together"),
        ("span_length", 0, "--mask-multiple-length 0: expected a whole number"),
        ("span_stdev", -1.0, "--mask-stdev -1.0: expected a number, at least 0"),
    ],
)
def test_options_out_of_range_are_named(option, value, message, dictionary):
    with pytest.raises(UserError, match=message):
        masker(dictionary, **{option: value})


@pytest.mark.parametrize("option", ["skip_masking", "d2v2_multi"])
def test_options_of_data2vec_are_refused(option, task):
    cfg = OmegaConf.merge(task.cfg, {option: True})
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')} is for data2vec"):
        RtMaskedLMTask.setup_task(cfg).load_dataset("train")


def test_dataset_asks_the_masker_once_an_item(dictionary, blocks):
    calls = []

    def count(tokens, epoch, index):
        calls.append((epoch, index))
        return masker(dictionary)(tokens, epoch, index)

    dataset = MaskedDataset(blocks, count)
    for epoch in (1, 2):
        dataset.set_epoch(epoch)
        for index in (0, 0, 1, 1):
            dataset[index]
    assert calls == [(1, 0), (1, 1), (2, 0), (2, 1)]
