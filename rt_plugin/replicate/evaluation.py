"""What is measured, each in a program of its own: time of an update; on final encoders loss, minimal pairs, GLUE."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rt_plugin.console import commands
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import data_folders
from rt_plugin.replicate.finetunings import tasks_of
from rt_plugin.replicate.plan import Plan, Run
from rt_plugin.replicate.pool import Job, Pool, verb
from rt_plugin.replicate.results import (
    HELD_OUT_FILES,
    PHENOMENA_FILE,
    PLAN_FILE,
    STEPS_COLUMNS,
    STEPS_FILE,
    checksum,
    evaluation_folder,
    finetuning_file,
    floor_file,
    pairs_folder,
    read_csv,
    results_folder,
    write_evaluations,
    write_finetunings,
    write_pairs,
)
from rt_plugin.replicate.runs import CHECKPOINT_FILE, read_carried

PAIR_MASKS = ("token", "word")


def check_inputs(plan: Plan, data: str, pairs: Sequence[Path], glue: Path | None) -> None:
    """Refuse, before the trainings, what would be missing after them.

    Raises:
        UserError: the corpus has no test split, a file of pairs or the folder of GLUE is not there, or the plan has no
            fine-tuning.
    """
    folder = Path(data_folders(data)[0])
    if not (folder / "test.idx").is_file():
        raise UserError(
            f"{folder}: has no split 'test', which final encoders are measured on; prepare the corpus with --test"
        )
    for path in [*pairs, *([] if glue is None else [glue])]:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    if glue is not None and plan.finetuning is None:
        raise UserError(f"--glue: the plan {plan.scale} has no finetuning; leave it out")


def time_updates(plan: Plan, data: str, out: Path, pool: Pool) -> None:
    """Time an update of every arm, alone on the machine as far as this program goes, and write the CSV file.

    A file that has all arms stays as it is.

    Raises:
        UserError: the measurement broke off.
    """
    file = results_folder(out) / STEPS_FILE
    if {row["arm"] for row in read_csv(file, STEPS_COLUMNS[:2])} >= plan.arms.keys():
        commands.report(f"{file}: was measured before; delete it to measure anew")
        return
    command = [*verb("time-updates"), str(results_folder(out) / PLAN_FILE), "--data", data, "--out", str(file)]
    command += ["--threads", pool.environment["OMP_NUM_THREADS"]]
    _run_all(Pool(1, pool.environment, pool.nice), [Job("time of an update", command, file.with_suffix(".log"))])


def held_out_losses(plan: Plan, runs: Sequence[Run], data: str, out: Path, pool: Pool) -> None:
    """Evaluate the final encoders on the test split, and write the CSV files of all that was ever measured on them.

    What was measured on the same checkpoint with the same masks is not measured again; what was taken over from
    another machine stays.

    Raises:
        UserError: a measurement broke off.
    """
    jobs = []
    for run in runs:
        folder = evaluation_folder(run, out)
        command = [*verb("held-out"), str(run.folder(out)), "--data", data, "--out", str(folder), "--no-plots"]
        command += ["--labels", run.name, "--mask-seed", str(plan.mask_seed)]
        command += ["--cpu"] if "--cpu" in plan.launcher else []
        there = read_csv(folder / HELD_OUT_FILES[0])
        if read_carried(run.folder(out)):
            checkpoint = there[0]["checkpoint"]
        else:
            checkpoint = checksum(run.folder(out) / CHECKPOINT_FILE)
        if not there or (there[0]["checkpoint"], there[0]["mask_seed"]) != (checkpoint, str(plan.mask_seed)):
            jobs.append(Job(f"held-out loss of {run.name}", command, folder / "held_out.log"))
    _run_all(pool, jobs)
    write_evaluations(runs, out)
    write_pairs(runs, out)
    write_finetunings(_finetuning_files(plan, out), out)


def _finetuning_files(plan: Plan, out: Path) -> list[Path]:
    if plan.finetuning is None:
        return []
    variants, tasks = plan.finetuning.variants, tasks_of(plan.finetuning)
    return [*(finetuning_file(name, out) for name in variants), *(floor_file(task, out) for task in tasks)]


def minimal_pairs(plan: Plan, runs: Sequence[Run], pairs: Sequence[Path], out: Path, pool: Pool) -> None:
    """Judge minimal pairs with the final encoders, with each way of masking, and write the CSV file of all.

    Stopped or broken off, the file has what was measured until then; and always what was measured before.

    Raises:
        UserError: a measurement broke off.
    """
    jobs = []
    for run in runs:
        for data in pairs:
            folders = [pairs_folder(run, data.stem, mask, out) for mask in PAIR_MASKS]
            both = folders[0].parent
            command = [*verb("minimal-pairs"), str(run.folder(out)), str(data), "--out", str(both)]
            command += ["--mask", *PAIR_MASKS, "--name", run.name, *(["--cpu"] if "--cpu" in plan.launcher else [])]
            if read_carried(run.folder(out)) is None:
                jobs.append(Job(f"{data.stem} with {run.name}", command, both / "minimal_pairs.log"))
            elif not all((folder / PHENOMENA_FILE).is_file() for folder in folders):
                commands.report(f"WARNING: {run.name} was taken over, and not measured on {data.stem}")
    try:
        _run_all(pool, jobs)
    finally:
        write_pairs(runs, out)


def finetune(plan: Plan, runs: Sequence[Run], glue: Path, out: Path, pool: Pool) -> None:
    """Fine-tune the encoders of the plan's fine-tuning seed, and write the CSV file of all and of the floor.

    The sweeps run one after the other, each with as many runs at a time as the pool has slots.

    Raises:
        UserError: a sweep broke off, or no final run of the plan's fine-tuning seed ended well.
    """
    f = plan.finetuning
    encoders = [run for run in runs if f.of(run)]
    if not encoders:
        arms = dict.fromkeys(arm for arm, _ in f.variants.values())
        raise UserError(f"--glue: no final run of {', '.join(arms)} with seed {f.encoder_seed} ended well")
    carried = [run for run in encoders if read_carried(run.folder(out))]
    for run in carried:
        planned = len(f.of(run)) * f.runs
        found = sum(len(read_csv(finetuning_file(name, out))) for name in f.of(run))
        if found < planned:
            raise UserError(
                f"--glue: {run.name} was taken over with {found} of {planned} fine-tunings, and its encoder is not "
                f"here; to train it again for the others, remove {run.folder(out)} and {run.folder(out)}.json, and run "
                "--stage final without --continue-from"
            )
    encoders = [run for run in encoders if run not in carried]
    if not encoders:
        commands.report("all fine-tunings were taken over")
    data, tasks = out / "glue" / "data", tasks_of(f)
    if encoders and not all((data / task / "glue.json").is_file() for task in tasks):
        words = [str(glue), str(data), "--model", str(encoders[0].folder(out)), "--tasks", *tasks]
        _run_all(pool, [Job("preparing GLUE", [*verb("prepare-glue"), *words], out / "glue" / "prepare.log")])
    sweeper = Pool(1, pool.environment, pool.nice)
    for run in encoders:
        for name in f.of(run):
            for number, (names, seeds) in enumerate(f.sweeps, start=1):
                command = _sweep_command(plan, run, name, names, seeds, out, pool)
                log = out / "glue" / f"{name}-{number}.log"
                _run_all(sweeper, [Job(f"{name} on {', '.join(names)}", command, log)])
                write_finetunings(_finetuning_files(plan, out), out)
    _measure_floors(tasks, glue, out, pool)
    write_finetunings(_finetuning_files(plan, out), out)


def _sweep_command(
    plan: Plan, run: Run, variant: str, tasks: Sequence[str], seeds: Sequence[int], out: Path, pool: Pool
) -> list[str]:
    """Fine-tunes an encoder in one of its variants."""
    f = plan.finetuning
    data, folder = out / "glue" / "data", finetuning_file(variant, out).parent
    command = [*verb("finetune-glue"), str(data), str(folder), "--model", str(run.folder(out)), "--name", variant]
    command += ["--tasks", *tasks, "--lr", *(f"{rate:g}" for rate in f.learning_rates)]
    command += ["--seeds", *map(str, seeds), "--epochs", str(f.epochs), "--jobs", str(pool.slots)]
    command += ["--threads", pool.environment["OMP_NUM_THREADS"], "--keep", "none"]
    command += ["--gpus"] if "--cpu" in plan.launcher else []
    _, options = f.variants[variant]
    return [*command, "--", *options] if options else command


def _measure_floors(tasks: Sequence[str], glue: Path, out: Path, pool: Pool) -> None:
    """Of the tasks that were not measured before."""
    jobs = []
    for task in tasks:
        file = floor_file(task, out)
        command = [*verb("glue-baselines"), str(glue), str(file), "--tasks", task]
        if not file.exists():
            jobs.append(Job(f"{task} without an encoder", command, file.with_suffix(".log")))
    _run_all(pool, jobs)


def _run_all(pool: Pool, jobs: Sequence[Job]) -> None:
    broken = []
    for number, ended in enumerate(pool.run(jobs, lambda: not broken), start=1):
        failure = f", broke off with status {ended.status}" if ended.status else ""
        commands.report(f"[{number}/{len(jobs)}] {ended.job.name}: {ended.last_line}{failure}")
        if ended.status:
            broken.append(f"{shlex.join(ended.job.command)} ended with status {ended.status}: {ended.last_line}")
    if broken:
        raise UserError(f"{broken[0]}; all it said is in its log; the same command goes on from here")
