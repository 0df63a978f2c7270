"""The public `swish_rnn`: chooses a backend for the operation that `reference` defines."""

import functools
import logging

from torch import Tensor

from . import reference
from .errors import UserError

logger = logging.getLogger(__name__)

IMPLEMENTATIONS = ("auto", "native", "reference")


def native_backends() -> dict[str, str]:
    """For each device type ("cpu", "cuda"): "" where its compiled op can run, else the reason why not."""
    reason = "this version has no compiled op yet; the op runs in plain PyTorch"
    return {"cpu": reason, "cuda": reason}


@functools.cache
def _log_choice(device_type: str, choice: str, reason: str) -> None:
    logger.info("swish_rnn on %s runs in %s%s", device_type, choice, f": {reason}" if reason else "")


def swish_rnn(
    x12: Tensor,
    alpha: Tensor,
    beta: Tensor,
    c_bias: Tensor,
    gate_bias: Tensor,
    step_size: int = 1,
    gate: str = "gelu",
    reverse: bool = False,
    impl: str = "auto",
) -> Tensor:
    """The SwishRNN operation (see `reference.swish_rnn` for the definition and the arguments).

    Args:
        impl: "reference" runs plain PyTorch, "native" the compiled op, "auto" the compiled op where there is one for
            the device and plain PyTorch elsewhere, and logs the choice once.

    Returns:
        (L, B, d') in the type of x12.

    Raises:
        UserError: an argument is not as documented, or "native" was asked for and cannot run.
    """
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"swish_rnn: impl is {impl!r}, expected one of {', '.join(IMPLEMENTATIONS)}")
    device_type = x12.device.type
    if impl != "reference":
        reason = native_backends().get(device_type, f"there is no compiled op for {device_type}")
        if reason and impl == "native":
            raise UserError(f"swish_rnn: impl='native' cannot run on {device_type}: {reason}")
        if impl == "auto":
            _log_choice(device_type, "plain PyTorch", reason)
    return reference.swish_rnn(x12, alpha, beta, c_bias, gate_bias, step_size, gate, reverse)
