"""`--optimizer fused_adam`: fairseq's Adam by torch's fused kernel, one pass over the weights in place of eight.

The same update to the last bits but a few: torch divides the gradients' mean square by its bias correction before it
adds eps, fairseq after that; here eps is corrected before each step. Off by default, so that a training goes on as it
began. Its state is that of fairseq's Adam: either goes on from the other's.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from fairseq.optim.adam import FairseqAdam
from omegaconf import II


class FusedAdam(torch.optim.AdamW):
    """AdamW with fairseq's eps; weights in float32, as fairseq keeps them under --fp16 and --bf16, too.

    Args:
        params: as for every optimizer of torch.
        lr, betas, eps, weight_decay: as fairseq's Adam has them.
    """

    supports_flat_params = True  # what --fp16 asks: one tensor for all weights

    def __init__(self, params, lr: float, betas: tuple[float, float], eps: float, weight_decay: float):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        self._updates = 0  # counted here: the kernel's own counters are on the device

    @torch.no_grad()
    def step(self, closure=None):
        """One update; none where the scaler of --amp has set `found_inf`, which the kernel heeds."""
        eps = [group["eps"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                group["eps"] /= math.sqrt(1 - group["betas"][1] ** (self._updates + 1))
            return super().step(closure)
        finally:
            self._updates += not getattr(self, "found_inf", None)
            for group, value in zip(self.param_groups, eps, strict=True):
                group["eps"] = value

    def state_dict(self) -> dict:
        """fairseq's: steps are whole numbers, and groups have no options of torch's kernels."""
        found = super().state_dict()
        names = ("lr", "betas", "eps", "weight_decay", "amsgrad", "params")
        return {
            "state": {i: {**values, "step": int(values["step"])} for i, values in found["state"].items()},
            "param_groups": [{name: group[name] for name in names} for group in found["param_groups"]],
        }

    def load_state_dict(self, state_dict: dict) -> None:
        groups = [{**self.defaults, **group} for group in state_dict["param_groups"]]
        super().load_state_dict({"state": state_dict["state"], "param_groups": groups})
        self._updates = max((int(values["step"]) for values in state_dict["state"].values()), default=0)


@dataclass
class FusedAdamConfig(FairseqDataclass):
    """The options of fairseq's Adam that the kernel knows."""

    adam_betas: Any = field(default=(0.9, 0.999), metadata={"help": "betas for Adam optimizer"})
    adam_eps: float = field(default=1e-8, metadata={"help": "epsilon for Adam optimizer"})
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay"})
    lr: list[float] = field(default=II("optimization.lr"))


@register_optimizer("fused_adam", dataclass=FusedAdamConfig)
class FusedFairseqAdam(FairseqAdam):
    """`FusedAdam` for fairseq's trainer."""

    def __init__(self, cfg: FusedAdamConfig, params):
        FairseqOptimizer.__init__(self, cfg)  # FairseqAdam's would choose another kernel
        self._optimizer = FusedAdam(params, **self.optimizer_config)


# The trainer goes on from the state of an optimizer whose class has this name.
FusedFairseqAdam.__name__ = FairseqAdam.__name__
