"""What is refused, in one line: trainings that would silently be something else than was asked for."""

import functools
import importlib.util
import os
import sys
from pathlib import Path

import torch
from fairseq import checkpoint_utils, distributed, file_utils, options
from fairseq.distributed import utils as distributed_utils
from fairseq.models.roberta import RobertaModel
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

from rt_plugin import trust
from rt_plugin.console.options import check_folder, check_values
from rt_plugin.errors import UserError
from rt_plugin.model_folder.checkpoint import companion_digests, refuse_another_function, starting_checkpoint
from rt_plugin.repairs.messages import after_divergence
from rt_plugin.repairs.registry import Patches, refusal

_MOST_CHARACTERS = 300  # of torch's list of weights
_TWO_PRECISIONS = "--fp16 and --bf16: a training has one precision; leave one of them out"


@refusal(
    patches=["fairseq.distributed.utils.call_main", "fairseq.trainer.Trainer.__init__"],
    threads=["facebookresearch/fairseq#2879"],
    until="fairseq trains with several processes on a CPU, or refuses by itself",
)
def launches_without_training(patches: Patches) -> None:
    """On a CPU, torchrun without a world size trains once a process into one folder, and a world size without
    `--distributed-no-spawn` trains nothing and exits 0. Both are refused (with `fairseq-hydra-train` only the first: in
    the second nothing imports the plugin).

    The second place is fairseq-hydra-train's, which imports the plugin after call_main: too late for the second launch.
    """
    call_main, init_trainer = distributed_utils.call_main, Trainer.__init__

    @functools.wraps(call_main)
    def call_main_if_it_trains(cfg, main, **kwargs):
        _refuse_useless_launch(cfg.distributed_training)
        return call_main(cfg, main, **kwargs)

    @functools.wraps(init_trainer)
    def init_trainer_if_it_trains(self, cfg, *args, **kwargs):
        _refuse_useless_launch(cfg.distributed_training)
        init_trainer(self, cfg, *args, **kwargs)

    patches.set(distributed_utils, "call_main", call_main_if_it_trains)
    patches.set(Trainer, "__init__", init_trainer_if_it_trains)


def _refuse_useless_launch(cfg) -> None:
    """Refuse a launch that trains several times into one folder, or not at all.

    Args:
        cfg: fairseq's distributed_training group.

    Raises:
        UserError: it is one of the two.
    """
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        if not os.environ.get(name, "0").isdecimal():
            raise UserError(f"environment variable {name}={os.environ[name]}: expected a whole number; unset {name}")
    processes = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if processes > 1 and cfg.distributed_world_size == 1:
        raise UserError(
            f"torchrun started {processes} processes, but the world size is 1: each would train by itself; use "
            "rt-plugin pretrain --processes, or see docs/pretraining.md for the options"
        )
    spawns = cfg.distributed_init_method is not None and not cfg.distributed_no_spawn
    if spawns and not torch.cuda.is_available():
        raise UserError(
            f"--distributed-world-size {cfg.distributed_world_size} without a GPU: fairseq would start no process and "
            "train nothing; use rt-plugin pretrain --processes, or see docs/pretraining.md for the options"
        )


@refusal(
    patches=[
        "fairseq.options.parse_args_and_arch",
        "fairseq.distributed.utils.call_main",
        "fairseq.trainer.Trainer.__init__",
    ],
    until="fairseq looks at the values of its options",
)
def options_out_of_range(patches: Patches) -> None:
    """Options that cannot be meant (`--lr nan`, `--dropout 2`, `--encoder-layers 0`, `--tokens-per-sample` above
    `--max-positions` or `--max-tokens`) train nothing, or something else, or end in a traceback.

    The table of ranges is `rt_plugin.console.options.ALLOWED`. The last place is fairseq-hydra-train's, as above; the
    first is before fairseq stumbles itself over two precisions, or over the options of another family of models.
    """
    parse_args_and_arch = options.parse_args_and_arch

    @functools.wraps(parse_args_and_arch)
    def parse_options_that_go_together(*args, **kwargs):
        try:
            parsed = parse_args_and_arch(*args, **kwargs)
        except ValueError as error:
            if "Cannot combine --fp16" not in str(error):  # and --tpu, which --bf16 sets
                raise
            raise UserError(_TWO_PRECISIONS) from None
        one = parsed[0] if isinstance(parsed, tuple) else parsed
        _refuse_another_family(getattr(one, "task", None), getattr(one, "arch", None))
        return parsed

    patches.set(options, "parse_args_and_arch", parse_options_that_go_together)
    call_main, init_trainer = distributed_utils.call_main, Trainer.__init__

    @functools.wraps(call_main)
    def call_main_with_options_in_range(cfg, main, **kwargs):
        _refuse_values(cfg)
        if os.path.basename(main.__code__.co_filename) == "train.py":
            _refuse_training(cfg)
        return call_main(cfg, main, **kwargs)

    @functools.wraps(init_trainer)
    def init_trainer_with_options_in_range(self, cfg, *args, **kwargs):
        _refuse_values(cfg)
        init_trainer(self, cfg, *args, **kwargs)

    patches.set(distributed_utils, "call_main", call_main_with_options_in_range)
    patches.set(Trainer, "__init__", init_trainer_with_options_in_range)


def _refuse_values(cfg) -> None:
    for group in ("common", "dataset", "optimization", "task", "model", "optimizer", "lr_scheduler"):
        check_values(_group(cfg, group))
    common = _group(cfg, "common")
    if common.get("fp16") and common.get("bf16"):
        raise UserError(_TWO_PRECISIONS)
    task, model = _group(cfg, "task"), _group(cfg, "model")
    length, positions = task.get("tokens_per_sample"), model.get("max_positions")
    if task.get("_name") != "rt_masked_lm" or not model or not length:
        return  # fairseq-validate has no model here, and takes the length from the checkpoint
    if positions and length > positions:
        raise UserError(
            f"--tokens-per-sample {length} is more than the {positions} positions of the model: longer blocks would be "
            f"left out; use --max-positions {length}, or --tokens-per-sample {positions}"
        )
    for name in ("max_tokens", "max_tokens_valid"):
        tokens, option = _group(cfg, "dataset").get(name), f"--{name.replace('_', '-')}"
        if isinstance(tokens, int) and length > tokens:  # the second may be a reference to the first
            raise UserError(
                f"--tokens-per-sample {length} is more than {option} {tokens}: longer blocks would be left out, or end "
                f"the training; use {option} {length}, or --tokens-per-sample {tokens}"
            )


def _refuse_training(cfg) -> None:
    """What only a training minds."""
    if cfg.dataset.batch_size is None and cfg.dataset.max_tokens is None:
        raise UserError("neither --batch-size nor --max-tokens is given; expected one of them, such as --batch-size 32")
    check_folder("--save-dir", Path(cfg.checkpoint.save_dir))


def _refuse_another_family(task: str | None, arch: str | None) -> None:
    from fairseq.models import ARCH_MODEL_REGISTRY

    model = ARCH_MODEL_REGISTRY.get(arch)
    if task in ("rt_masked_lm", "rt_glue") and model is not None and not issubclass(model, RobertaModel):
        raise UserError(
            f"--arch {arch}: --task {task} cannot train it; expected an encoder such as recurrent_roberta_base or "
            "roberta_base"
        )


def _group(cfg, name: str) -> dict:
    """A group of options, of whatever type fairseq has made it; empty where there is none."""
    group = None if OmegaConf.is_config(cfg) and OmegaConf.is_missing(cfg, name) else getattr(cfg, name, None)
    if group is None:
        return {}
    if OmegaConf.is_config(group):
        return dict(OmegaConf.to_container(group, resolve=False))
    return dict(vars(group)) if hasattr(group, "__dict__") else dict(group)


@refusal(
    patches=["fairseq.distributed.fsdp_enable_wrap"],
    until="fairseq shards with torch's own FSDP",
)
def fully_sharded_without_means(patches: Patches) -> None:
    """`--ddp-backend fully_sharded` without fairscale or a GPU ends in a traceback, sooner or later."""
    fsdp_enable_wrap = distributed.fsdp_enable_wrap

    @functools.wraps(fsdp_enable_wrap)
    def enable_wrap_where_possible(cfg):
        missing = [] if torch.cuda.is_available() else ["a GPU"]
        missing += [] if importlib.util.find_spec("fairscale") else ["the package fairscale (pip install fairscale)"]
        if missing:
            raise UserError(
                f"--ddp-backend fully_sharded needs {' and '.join(missing)}, not found here; leave the option out: "
                "--memory-efficient-fp16, --checkpoint-activations and --update-freq save memory everywhere"
            )
        return fsdp_enable_wrap(cfg)

    def put(function):
        distributed.fsdp_enable_wrap = function
        for name in ("fairseq_cli.train", "__main__"):  # training takes it by name when it is imported, before or after
            if hasattr(sys.modules.get(name), "fsdp_enable_wrap"):
                sys.modules[name].fsdp_enable_wrap = function

    put(enable_wrap_where_possible)
    patches.note("fairseq.distributed.fsdp_enable_wrap", functools.partial(put, fsdp_enable_wrap))


@refusal(
    patches=["fairseq.trainer.Trainer.save_checkpoint"],
    until="fairseq looks at the weights that it saves",
)
def no_checkpoint_of_broken_weights(patches: Patches) -> None:
    """Weights that are not finite replace the last good checkpoint."""
    save_checkpoint = Trainer.save_checkpoint

    @functools.wraps(save_checkpoint)
    def save_finite_checkpoint(self, filename, extra_state):
        broken = [n for n, p in self.get_model().named_parameters() if not torch.isfinite(p).all()]
        if broken and os.path.basename(filename) != "crash.pt":
            raise UserError(
                f"update {self.get_num_updates()}: {len(broken)} weights are not finite ({broken[0]} is the first), so "
                f"{os.path.basename(filename)} is not written; "
                f"{after_divergence(os.path.dirname(filename))}"
            )
        return save_checkpoint(self, filename, extra_state)

    patches.set(Trainer, "save_checkpoint", save_finite_checkpoint)


@refusal(
    patches=["fairseq.checkpoint_utils.load_checkpoint"],
    until="never: fairseq knows nothing of recurrences",
)
def another_recurrence(patches: Patches) -> None:
    """A checkpoint that was trained with another `--recurrence-direction`, `-step-size`, `-gate` or `-type`, other
    `--encoder-attention-heads`, another `--activation-fn` or order of norms is gone on from, without a word: its
    weights fit, and compute something else.

    Models take part by a method `refuse_another_recurrence(checkpoint)`, and by their options in `args`.
    """
    load_checkpoint = checkpoint_utils.load_checkpoint

    @functools.wraps(load_checkpoint)
    def load_checkpoint_of_this_recurrence(cfg, trainer, **kwargs):
        try:
            start = _start(cfg)
        except UserError:
            start = None  # there is none: nothing to compare
        if start is not None and hasattr(trainer.get_model(), "refuse_another_recurrence"):
            trainer.get_model().refuse_another_recurrence(start)
        if start is not None and hasattr(trainer.get_model(), "args"):
            refuse_another_function(start, trainer.get_model().args)
        return load_checkpoint(cfg, trainer, **kwargs)

    patches.set(checkpoint_utils, "load_checkpoint", load_checkpoint_of_this_recurrence)


@refusal(
    patches=["fairseq.checkpoint_utils.load_checkpoint"],
    until="never: fairseq knows nothing of tokenizers",
)
def another_tokenizer(patches: Patches) -> None:
    """A checkpoint that was trained with another dictionary, tokenizer or normalisation is gone on from, without a
    word: its weights fit, and token ids mean something else. Refused before a file in `--save-dir` changes.

    Tasks take part by a method `refuse_other_companions(digests, checkpoint)`.
    """
    load_checkpoint = checkpoint_utils.load_checkpoint

    @functools.wraps(load_checkpoint)
    def load_checkpoint_of_this_tokenizer(cfg, trainer, **kwargs):
        try:
            start = _start(cfg)
            stored = companion_digests(start) if start is not None else None
        except UserError:
            stored = None  # loading it will say more
        if stored is not None and hasattr(trainer.task, "refuse_other_companions"):
            trainer.task.refuse_other_companions(stored, start, labels=False)
        return load_checkpoint(cfg, trainer, **kwargs)

    patches.set(checkpoint_utils, "load_checkpoint", load_checkpoint_of_this_tokenizer)


@refusal(
    patches=[
        "fairseq.models.roberta.model.RobertaModel.upgrade_state_dict_named",
        "fairseq.checkpoint_utils.load_model_ensemble_and_task",
    ],
    until="fairseq compares sizes before torch does",
)
def sizes_of_another_model(patches: Patches) -> None:
    """A dictionary of another size than the checkpoint's, or a model of other sizes, ends in torch's words about
    parameters; the line has both sizes.
    """
    upgrade, load_all = RobertaModel.upgrade_state_dict_named, checkpoint_utils.load_model_ensemble_and_task

    @functools.wraps(upgrade)
    def upgrade_and_compare(self, state_dict, name):
        upgrade(self, state_dict, name)
        if not name:
            _refuse_other_sizes(state_dict, self.state_dict())

    @functools.wraps(load_all)
    def load_models_of_these_sizes(filenames, *args, **kwargs):
        try:
            return load_all(filenames, *args, **kwargs)
        except _OtherSizesError as error:
            raise UserError(f"{':'.join(filenames)}: its model differs from the one asked for ({error})") from None
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            named = " ".join(str(error).partition(":")[2].split())[:_MOST_CHARACTERS]
            raise UserError(f"{':'.join(filenames)}: its weights are not those of its model ({named})") from error

    patches.set(RobertaModel, "upgrade_state_dict_named", upgrade_and_compare)
    patches.set(checkpoint_utils, "load_model_ensemble_and_task", load_models_of_these_sizes)


class _OtherSizesError(UserError):
    """Without the name of the file, which the model does not know."""


def _refuse_other_sizes(stored: dict, here: dict) -> None:
    for name, weight in stored.items():
        there, own = tuple(weight.shape), tuple(here[name].shape) if name in here else None
        if own is None or own == there:
            continue
        if name.endswith("embed_tokens.weight") and own[1:] == there[1:]:
            raise _OtherSizesError(
                f"its dictionary had {there[0]} symbols, this one has {own[0]}, <mask> and the like among them: take "
                "the dict.txt that it was trained with"
            )
        raise _OtherSizesError(
            f"{name} is {' x '.join(map(str, there))}, that of this model {' x '.join(map(str, own))}"
        )


@refusal(
    patches=["fairseq.checkpoint_utils.load_checkpoint"],
    threads=["facebookresearch/metaseq#602"],
    until="fairseq refuses it by itself",
)
def missing_start_checkpoint(patches: Patches) -> None:
    """`--restore-file` with a path that does not exist trains from scratch, with a line in the log alone."""
    load_checkpoint = checkpoint_utils.load_checkpoint

    @functools.wraps(load_checkpoint)
    def load_existing_checkpoint(cfg, trainer, **kwargs):
        _start(cfg)
        return load_checkpoint(cfg, trainer, **kwargs)

    patches.set(checkpoint_utils, "load_checkpoint", load_existing_checkpoint)


def _start(cfg) -> str | None:
    return starting_checkpoint(
        cfg.save_dir, cfg.restore_file, cfg.finetune_from_model, getattr(cfg, "continue_once", None)
    )


@refusal(
    patches=["fairseq.file_utils.get_from_cache"],
    until="never: fairseq downloads what a name or an address says",
)
def no_downloads(patches: Patches) -> None:
    """A tokenizer without files (`bpe="gpt2"`), a model's name or an address is downloaded without a word, and
    unpacked.

    `rt_plugin.allow("download")` lets it.
    """
    get_from_cache = file_utils.get_from_cache

    @functools.wraps(get_from_cache)
    def get_nothing(url, cache_dir=None):
        if trust.is_allowed("download"):
            return get_from_cache(url, cache_dir)
        raise UserError(
            f"{url}: is an address, and nothing is downloaded here; give files (for a tokenizer of fairseq's their "
            f"options, such as gpt2_encoder_json=FILE); {trust.how_to_allow('download')}"
        )

    patches.set(file_utils, "get_from_cache", get_nothing)


@refusal(
    patches=["fairseq.file_utils.load_archive_file"],
    until="fairseq unpacks into the folder that it names, and leaves the archive where it is",
)
def packed_models(patches: Patches) -> None:
    """A packed model (`model.tar.gz`) is unpacked wherever the names in it lead, and its archive is replaced by what
    comes out.
    """
    load_archive_file = file_utils.load_archive_file

    @functools.wraps(load_archive_file)
    def load_folder(archive_file):
        if os.path.isfile(archive_file):
            raise UserError(f"{archive_file}: is a file, expected a model folder; unpack it, and give what comes out")
        return load_archive_file(archive_file)

    patches.set(file_utils, "load_archive_file", load_folder)
