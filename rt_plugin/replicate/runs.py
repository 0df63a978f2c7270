"""One pretraining of a plan on disk: its command, what a folder holds, how far it is and how it ended.

OUT/<stage>/<arm>-lr<rate>-seed<seed>/       the --save-dir of `rt-plugin pretrain`, or a link to an adopted one
OUT/<stage>/<arm>-lr<rate>-seed<seed>.json   how it ended, with which commit and when; what has one is not run
                                             again, unless it broke off
A folder with a carried.json stands for a training on another machine: see carried.py
"""

import datetime
import itertools
import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rt_plugin._location import USER_DIR
from rt_plugin.console.files import replacing
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import DICTIONARY_FILE
from rt_plugin.pretrain import launch
from rt_plugin.pretrain.plot import read_run
from rt_plugin.pretrain.revision import revision
from rt_plugin.replicate.plan import Plan, Run
from rt_plugin.replicate.pool import verb

DONE, DIVERGED, BROKE_OFF = "", "diverged", "broke off"
COMMAND_FILE = "command.txt"
CHECKPOINT_FILE = "checkpoint_best.pt"
CARRIED_FILE = "carried.json"  # {"parameters": ..., "curve": [[update, tokens, hours, loss], ...]}
_NOT_FINITE = re.compile(r"not finite|NaN|lower --lr|[Mm]inimum loss scale")
_PARAMETERS = re.compile(r"num\. shared model params: ([\d,]+)")
_VERSION = re.compile(r"[\w.+-]{1,60}")
# what a run is known by, beside all that an arm of its plan names; not by paths, intervals and devices
_OF_A_MODEL = ("--recurrence-", "--encoder-", "--activation-fn", "--pooler-activation-fn")  # fairseq-train's begin so
_OF_A_RECIPE = (
    *("--arch", "--tokens-per-sample", "--max-update", "--warmup-updates", "--lr", "--seed", "--adam-betas"),
    *("--adam-eps", "--weight-decay", "--clip-norm", "--dropout", "--attention-dropout"),
)


@dataclass(frozen=True)
class Ending:
    """How a run ended: `failed` is empty, "diverged" or "broke off", `why` a line; with which commit, on which day."""

    failed: str
    why: str
    commit: str
    date: str


@dataclass(frozen=True)
class Point:
    """A validation: after so many updates, tokens and hours (of all attempts); the loss in bits."""

    update: int
    tokens: int
    hours: float
    loss: float


def launch_command(plan: Plan, run: Run, data: str, out: Path) -> list[str]:
    """The program that trains it; the same command again resumes."""
    return [*verb("pretrain"), *launch_options(plan, run, data, run.folder(out))]


def launch_options(plan: Plan, run: Run, data: str, save_dir: Path) -> list[str]:
    """What `rt-plugin pretrain` is told of a run."""
    return [
        data,
        *("--recipe", plan.recipe, "--model", run.arm.model, "--learning-rate", f"{run.learning_rate:g}"),
        *("--updates", str(run.updates), "--warmup-updates", str(run.warmup_updates), "--seed", str(run.seed)),
        *("--save-dir", str(save_dir), *plan.launcher, "--", *plan.options, *run.arm.options),
    ]


def is_of_run(plan: Plan, run: Run, folder: Path) -> bool:
    """Whether the training in a folder is the run, by its command.txt; False where there is none."""
    try:
        words = shlex.split((folder / COMMAND_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    args = launch.parse_arguments(launch_options(plan, run, "", folder))
    command = launch.fairseq_options(args, launch.choose_recipe(args), launch.Devices("cpu", 1))
    found, wanted = _options(words), _options(list(map(str, command)))
    named = _options([*plan.options, *(word for arm in plan.arms.values() for word in arm.options)])
    names = {*_OF_A_RECIPE, *named, *(name for name in found if name.startswith(_OF_A_MODEL))}
    return all(_are_same(found.get(name), wanted.get(name)) for name in names)


def _options(words: Sequence[str]) -> dict[str, str]:
    """Options with their values, "" for those without; of one that is given twice the last value, which counts."""
    pairs = itertools.pairwise([*words, ""])
    return {name: "" if value.startswith("--") else value for name, value in pairs if name.startswith("--")}


def _are_same(one: str | None, other: str | None) -> bool:
    try:
        return math.isclose(float(one or "nan"), float(other or "nan")) or one == other
    except ValueError:
        return one == other


def check_folder(plan: Plan, run: Run, data: Path, out: Path) -> None:
    """Refuse a folder that holds another training than the run, or one on other data.

    Raises:
        UserError: it is one.
    """
    folder = run.folder(out)
    if (folder / COMMAND_FILE).is_file() and not is_of_run(plan, run, folder):
        raise UserError(f"{folder / COMMAND_FILE}: is not the training of the plan; choose another --out")
    ours, theirs = folder / DICTIONARY_FILE, data / DICTIONARY_FILE
    if ours.is_file() and theirs.is_file() and ours.read_bytes() != theirs.read_bytes():
        raise UserError(f"{folder}: was trained with another {DICTIONARY_FILE} than that in {data}; give its --data")


def read_curve(folder: Path) -> list[Point]:
    """The validations that a training has logged, in order; of one update the last one, as training was resumed."""
    if carried := read_carried(folder):
        return [Point(*values) for values in carried["curve"]]
    return [
        Point(record["update"], round(1e6 * record["tokens"]), round(record["hours"], 4), record["loss"])
        for record in _records(folder)
        if record["split"] == "valid"
    ]


def _records(folder: Path) -> list[dict]:
    try:
        return read_run(folder)
    except UserError:  # nothing is logged yet
        return []


def read_carried(folder: Path) -> dict | None:
    """What was taken over of a training on another machine; None where the training is here, or not at all.

    Raises:
        UserError: the file that says so is broken.
    """
    path = folder / CARRIED_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {error}; remove {folder}, and it is taken over or trained again") from None


def last_loss(curve: Sequence[Point]) -> float:
    """The last validation loss that is a finite number; nan where there is none."""
    return next((point.loss for point in reversed(curve) if math.isfinite(point.loss)), math.nan)


def read_parameters(folder: Path) -> int | None:
    """How many parameters the model has, as fairseq-train counted them."""
    if carried := read_carried(folder):
        return carried["parameters"]
    try:
        with (folder / "train.log").open(encoding="utf-8", errors="replace") as log:
            found = next(filter(None, map(_PARAMETERS.search, log)), None)
    except OSError:
        return None
    return int(found[1].replace(",", "")) if found else None


def read_ending(run: Run, out: Path) -> Ending | None:
    """How a run ended; None where it has not.

    Raises:
        UserError: the file that says so is broken.
    """
    path = _ending_file(run, out)
    try:
        return Ending(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{path}: {error}; remove the file, and the run is looked at again") from None


def end_run(run: Run, out: Path, status: int, why: str = "") -> Ending:
    """Judge a training that has stopped, by its log and by the last line of its launcher; writes it down.

    Args:
        status: exit status of the launcher.
        why: its last line.
    """
    folder = run.folder(out)
    curve = read_curve(folder)
    losses = [record["loss"] for record in _records(folder)]
    if not all(map(math.isfinite, losses)) or (status and _NOT_FINITE.search(why)):
        failed, why = DIVERGED, why or "the loss is not finite"
    elif curve and curve[-1].update >= run.updates:
        failed, why = DONE, ""
    else:
        failed, why = BROKE_OFF, why or f"status {status}, no validation after update {run.updates}"
    ending = Ending(failed, why, _commits(folder), _last_day(folder))
    write_ending(run, out, ending)
    return ending


def write_ending(run: Run, out: Path, ending: Ending) -> None:
    """Write down how a run ended."""
    with replacing(_ending_file(run, out)) as file:
        file.write(json.dumps(asdict(ending), indent=2).encode())


def adopt(plan: Plan, runs: Sequence[Run], folders: Sequence[Path], out: Path) -> list[tuple[Path, Run]]:
    """Link trainings that were begun elsewhere into OUT, each to the run that its command.txt is of.

    Raises:
        UserError: a folder is no training of the plan, or the run has a folder already.
    """
    adopted = []
    for folder in folders:
        run = next((run for run in runs if is_of_run(plan, run, folder)), None)
        if run is None:
            raise UserError(f"--adopt {folder}: no training of the plan, by its {COMMAND_FILE}; see --print-plan")
        place = run.folder(out)
        if place.exists() and place.resolve() == folder.resolve():
            continue
        if place.exists() or place.is_symlink():
            raise UserError(f"--adopt {folder}: {place} is there already; remove one of the two")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(folder.resolve(), target_is_directory=True)
        adopted.append((folder, run))
    return adopted


def _ending_file(run: Run, out: Path) -> Path:
    return run.folder(out).with_name(f"{run.name}.json")


def _commits(folder: Path) -> str:
    """What trained it, by its records; by its command.txt where these, of an earlier version, do not say."""
    found = [record.get("commit", "unknown") for record in _records(folder)]
    known = dict.fromkeys(c for c in found if isinstance(c, str) and _VERSION.fullmatch(c))
    return " ".join(known) if known.keys() - {"unknown"} else revision(_user_dir(folder))


def _user_dir(folder: Path) -> Path:
    try:
        words = shlex.split((folder / COMMAND_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return USER_DIR
    return Path(words[words.index("--user-dir") + 1]) if "--user-dir" in words[:-1] else USER_DIR


def _last_day(folder: Path) -> str:
    """The day (UTC) of the last thing that the training logged."""
    log = folder / "log.jsonl"
    time = log.stat().st_mtime if log.is_file() else None
    now = datetime.datetime.now(datetime.timezone.utc)
    return (datetime.datetime.fromtimestamp(time, datetime.timezone.utc) if time else now).date().isoformat()
