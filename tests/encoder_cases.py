"""What the tests of encoders share: small models, batches with and without padding, and what waits for a device."""

import argparse

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch.utils._python_dispatch import TorchDispatchMode

PAD = 1
LAYERS = 3


def make_model(arch, **options):
    """A small model of 40 symbols, always with the same weights."""
    dictionary = Dictionary()
    for i in range(36):
        dictionary.add_symbol(f"piece{i}")
    args = argparse.Namespace(
        **{"encoder_layers": LAYERS, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32},
        **{"encoder_attention_heads": 2, "max_positions": 12, "dropout": 0.0, "attention_dropout": 0.0, **options},
    )
    ARCH_CONFIG_REGISTRY[arch](args)
    torch.manual_seed(1)
    task = argparse.Namespace(source_dictionary=dictionary, dictionary=dictionary)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task)


def batches():
    """Without padding, and with some at the end of a row."""
    torch.manual_seed(2)
    whole = torch.randint(4, 40, (3, 9))
    padded = whole.clone()
    padded[1, 5:] = PAD
    return whole, padded


class Waits(TorchDispatchMode):
    """Counts what reads a value of a tensor, which waits for its device."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return function(*arguments, **(keywords or {}))


def waits(model, tokens):
    with Waits() as mode:
        model(tokens)
    return mode.count
