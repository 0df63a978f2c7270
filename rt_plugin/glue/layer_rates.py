"""Learning rates by layer: the head has the full rate, each layer below it `decay` times that of the one above.

Of N layers the topmost has decay, the lowest decay^N and the embeddings decay^(N+1) times the rate: ULMFiT (Howard and
Ruder 2018, arXiv 1801.06146) and ELECTRA (Clark et al. 2020, arXiv 2003.10555) fine-tune in this way.

fairseq writes one rate into all groups of an optimizer, and resumes from a state whose groups must be those of a new
optimizer. So the groups are split for the length of a step alone: schedule, log and checkpoint know the one rate.
"""

import contextlib
import re
from collections.abc import Iterator

from fairseq.optim import FairseqOptimizer
from torch import nn

from rt_plugin.errors import UserError

_MARK = "rt_lr_scale"  # attribute of a parameter
_LAYER = re.compile(r"encoder\.sentence_encoder\.layers\.(\d+)\.")
_EMBEDDINGS = re.compile(r"encoder\.sentence_encoder\.(embed_tokens|embed_positions|layernorm_embedding)\.")


def scale(name: str, layers: int, decay: float) -> float:
    """The share of the learning rate for a parameter of fairseq's roberta or of recurrent_roberta.

    Args:
        name: as the model's `named_parameters` has it.
        layers: of the encoder.
        decay: from one layer to the one below.
    """
    if found := _LAYER.match(name):
        return decay ** (layers - int(found[1]))
    return decay ** (layers + 1) if _EMBEDDINGS.match(name) else 1.0


def mark(model: nn.Module, decay: float) -> None:
    """Note on every parameter of a model which share of the learning rate `layer_rates` shall give it."""
    layers = len(model.encoder.sentence_encoder.layers)
    for name, parameter in model.named_parameters():
        setattr(parameter, _MARK, scale(name, layers, decay))


@contextlib.contextmanager
def layer_rates(optimizer: FairseqOptimizer) -> Iterator[None]:
    """While this is entered, the optimizer has a group for each rate of a marked model.

    Raises:
        UserError: the weights are joined into one, as --fp16 does on a GPU.
    """
    scales = _scales(optimizer)
    torch_optimizer = optimizer.optimizer
    whole = torch_optimizer.param_groups
    split = [_by_scale(group, scales) for group in whole]
    torch_optimizer.param_groups = [part for parts in split for part in parts]
    try:
        yield
    finally:
        torch_optimizer.param_groups = whole
        for group, parts in zip(whole, split, strict=True):  # some optimizers count their steps there
            group.update({name: value for name, value in parts[0].items() if name not in ("params", "lr")})


def _by_scale(group: dict, scales: dict[int, float]) -> list[dict]:
    """A group of an optimizer, cut into one for each rate."""
    parts: dict[float, list] = {}
    for parameter in group["params"]:
        parts.setdefault(scales[id(parameter)], []).append(parameter)
    return [{**group, "params": found, "lr": group["lr"] * share} for share, found in parts.items()]


def _scales(optimizer: FairseqOptimizer) -> dict[int, float]:
    """id of each parameter that the optimizer holds -> its share of the rate."""
    held = list(optimizer.params)
    marked = held
    if hasattr(optimizer, "fp32_params"):  # copies in full precision, in the order of the model's own
        copies = optimizer.fp32_params
        held, marked = (copies, optimizer.fp16_params) if isinstance(copies, list) else (held, held)
    if not any(hasattr(parameter, _MARK) for parameter in marked):
        raise UserError(
            "--layer-lr-decay gives each layer a rate of its own, and the optimizer has all weights joined into one "
            "(as --fp16 does on a GPU); add --fp16-no-flatten-grads, or use --bf16 or --memory-efficient-fp16"
        )
    return {id(one): getattr(mine, _MARK, 1.0) for one, mine in zip(held, marked, strict=True)}
