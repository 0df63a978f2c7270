"""What becomes of the classification head that the checkpoint has which a fine-tuning starts from."""

from pathlib import Path

from torch import nn

from rt_plugin.errors import UserError
from rt_plugin.glue.prepared import read_glue_file
from rt_plugin.model_folder.checkpoint import read_checkpoint
from rt_plugin.model_folder.pooling import MARKS, has_marks, pooling_of


def task_before(checkpoint: str, save_dir: str) -> str | None:
    """The task that a checkpoint was fine-tuned on before, or None where its folder does not tell.

    Args:
        checkpoint: that the training starts from.
        save_dir: of the training; a checkpoint there is its own.
    """
    folder = Path(checkpoint).parent
    if folder.resolve() == Path(save_dir).resolve():
        return None
    found = read_glue_file(folder)
    return found["task"] if found else None


def leave_out(model: nn.Module, head: str) -> None:
    """Have the next loading of weights leave the model's head as it is, whatever head comes with them."""
    module = model.classification_heads[head]

    def keep_own(module, weights, prefix, *_):
        for name in [name for name in weights if name.startswith(prefix)]:
            del weights[name]
        weights.update({f"{prefix}{name}": value for name, value in module.state_dict().items()})
        handle.remove()

    handle = module.register_load_state_dict_pre_hook(keep_own)


def take_marks(model: nn.Module, head: str, checkpoint: str) -> None:
    """Give a head the marks of shared tokens that the head of a checkpoint has, if both have some.

    They are read by the encoder, which has learned what they mean and comes along whatever becomes of the head.
    """
    module = model.classification_heads[head]
    if not hasattr(module, "marks"):
        return
    try:
        marks = read_checkpoint(checkpoint)["model"].get(f"classification_heads.{head}.{MARKS}")
    except UserError:
        return  # loading it will say more
    if marks is not None:
        module.marks.load_state_dict({"weight": marks})


def check_pooling(checkpoint: str, head: str, pooling: str, marks: bool) -> None:
    """Refuse to go on with a head that was trained on another vector: its weights fit, but mean something else.

    Args:
        checkpoint: that the training starts from.
        head: name of the head.
        pooling, marks: of the training, as in `PoolingHook`.

    Raises:
        UserError: it is one. A checkpoint without such a head, or one that cannot be read, is left to fairseq.
    """
    try:
        stored = read_checkpoint(checkpoint)
    except UserError:
        return  # loading it will say more
    if not any(name.startswith(f"classification_heads.{head}.") for name in stored["model"]):
        return
    task = (stored.get("cfg") or {}).get("task") or {}
    task = task if isinstance(task, dict) else vars(task)
    there = pooling_of(task)
    if there != pooling:
        raise UserError(
            f"{checkpoint} was fine-tuned with --pooling {there}, this run has {pooling}; add --pooling {there}, "
            "or train a head of another name with --classification-head-name"
        )
    if has_marks(task) != marks:
        found, remedy = ("without", "leave that option out") if marks else ("with", "add it")
        raise UserError(
            f"{checkpoint} was fine-tuned {found} --mark-shared; {remedy}, or train a head of another name with "
            "--classification-head-name"
        )
