"""Blocks that end with documents beside packed ones: loss after some updates, and speed, of small models side by side.

    python scripts/benchmark_packing.py runs/quickstart-tiny/corpus --updates 300

Every variant has updates of at most so many tokens, padding included, and starts from the same weights; the learning
rate rises, then stays. They take turns, update by update, in one process, so that what else the machine does strikes
all of them; speed is by the processor time of this process alone. All are validated on the same blocks, which end with
documents.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY
from omegaconf import OmegaConf

import checkout
import rt_plugin  # noqa: F401  (registers models and tasks)
from rt_plugin.console.tables import markdown_table

VARIANTS = {
    "complete_doc": {"sample_break_mode": "complete_doc"},
    "joined": {"pack_documents": "joined"},
    "joined, reset": {"pack_documents": "joined", "reset_recurrence": True},
    "separate": {"pack_documents": "separate"},
    "separate, reset": {"pack_documents": "separate", "reset_recurrence": True},
}


class Variant:
    """A model in training on blocks of one kind."""

    def __init__(self, data: str, options: dict, arguments: argparse.Namespace):
        fixed = {"data": data, "tokens_per_sample": arguments.tokens_per_sample, "seed": 1}
        cfg = OmegaConf.merge(OmegaConf.structured(TASK_DATACLASS_REGISTRY["rt_masked_lm"]), {**fixed, **options})
        self.task = TASK_REGISTRY["rt_masked_lm"].setup_task(cfg)
        self.task.load_dataset("train", epoch=1)
        self._arguments, self._epoch = arguments, 1
        self._iterator = self.task.get_batch_iterator(
            self.task.dataset("train"),
            max_tokens=arguments.max_tokens,
            max_positions=arguments.tokens_per_sample,
            ignore_invalid_inputs=True,
            required_batch_size_multiple=1,
            seed=1,
        )
        self._batches = self._iterator.next_epoch_itr()
        torch.manual_seed(1)
        args = argparse.Namespace(dropout=0.0, attention_dropout=0.0, tokens_per_sample=arguments.tokens_per_sample)
        ARCH_CONFIG_REGISTRY[arguments.arch](args)
        self.model = ARCH_MODEL_REGISTRY[arguments.arch].build_model(args, self.task)
        settings = {"lr": arguments.learning_rate, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
        self._optimizer = torch.optim.AdamW(self.model.parameters(), **settings)
        self.seconds = self.tokens = self.positions = 0

    def update(self, number: int) -> None:
        """One update, at the learning rate of a linear warm-up."""
        began = time.process_time()
        if not self._batches.has_next():
            self._batches = self._iterator.next_epoch_itr()
        batch = next(self._batches)
        for group in self._optimizer.param_groups:
            group["lr"] = self._arguments.learning_rate * min(1, number / self._arguments.warmup_updates)
        self.model.train()
        self._optimizer.zero_grad()
        loss, masked = loss_of(self.model, batch, self.task.source_dictionary.pad())
        (loss / masked).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self.seconds += time.process_time() - began
        self.tokens += batch["ntokens"]
        self.positions += batch["net_input"]["src_tokens"].numel()


def loss_of(model, batch, pad: int):
    """The loss in nats, summed over the masked tokens, and their number."""
    masked = batch["target"] != pad
    logits, _ = model(**batch["net_input"], masked_tokens=masked)
    return torch.nn.functional.cross_entropy(logits, batch["target"][masked], reduction="sum"), int(masked.sum())


@torch.no_grad()
def validation_loss(model, validation: Variant) -> float:
    """Bits a masked token."""
    task = validation.task
    task.load_dataset("valid")
    batches = task.get_batch_iterator(task.dataset("valid"), max_tokens=8192, seed=1).next_epoch_itr(shuffle=False)
    model.eval()
    losses = [loss_of(model, batch, task.source_dictionary.pad()) for batch in batches]
    return float(sum(loss for loss, _ in losses)) / sum(masked for _, masked in losses) / math.log(2)


def main() -> None:
    parser = checkout.parser(__doc__)
    parser.add_argument("data", help="a data folder with train and valid")
    parser.add_argument("--updates", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--warmup-updates", type=int, default=80, help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="default: %(default)s")
    parser.add_argument("--tokens-per-sample", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=4096, help="of an update (default: %(default)s)")
    parser.add_argument("--arch", default="recurrent_roberta_tiny", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    variants = {name: Variant(arguments.data, options, arguments) for name, options in VARIANTS.items()}
    for number in range(1, arguments.updates + 1):
        for variant in variants.values():
            variant.update(number)
        if number % 50 == 0:
            print(f"update {number} of {arguments.updates}", flush=True)
    figures = {
        name: {
            "updates": arguments.updates,
            "tokens": variant.tokens,
            "padding": 1 - variant.tokens / variant.positions,
            "tokens_per_processor_second": variant.tokens / variant.seconds,
            "validation_loss": validation_loss(variant.model, variants["complete_doc"]),
        }
        for name, variant in variants.items()
    }
    rows = [
        (
            name,
            f"{row['tokens']:,}",
            f"{100 * row['padding']:.1f} %",
            f"{row['tokens_per_processor_second']:,.0f}",
            f"{row['validation_loss']:.3f}",
        )
        for name, row in figures.items()
    ]
    print(markdown_table(("blocks", "tokens", "padding", "tokens a processor second", "validation loss, bits"), rows))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
