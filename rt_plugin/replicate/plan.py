"""A replication's plan, as data: arms, learning rates, seeds and lengths; which runs follow from it, and their cost.

Plans are JSON files, those of the named scales in `plans/`. Keys:

    scale, about             its name; what it is for, in a line
    recipe, launcher         of `rt-plugin pretrain`: --recipe, and further options of it that all runs have
    options                  of fairseq-train, behind the --, for all runs (may be left out)
    arms                     name -> model (--model) and options (of fairseq-train)
    search, final            updates, warmup_updates, seeds; search: learning_rates, and what extends that grid for all
                             arms where an arm's best rate is at its edge: extend_by, a factor, at most `extensions`
                             times; final: arms (may be left out: all)
    evaluate                 mask_seed (of the masks on the test split); finetuning (may be left out): arms,
                             encoder_seed, learning_rates, epochs, sweeps of tasks and seeds; variants (may be left
                             out): name -> arm and options of fairseq-train with which its encoder is fine-tuned again;
                             comparisons of arms and variants (may be left out: those of the arms' losses)
    comparisons              [a, b]: is a's test loss below b's?
    substitutes              arm -> arms that take its place in the comparisons if they did better in the search
    least_difference         in bits; of losses, what is below counts as no difference
    verdicts, otherwise      the first verdict whose comparisons, counted from 1, are all in favour is the conclusion
    cost                     tokens_per_second of a `unit` (core, GPU), and the `source` of that figure
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rt_plugin.errors import UserError
from rt_plugin.glue.specs import BY_NAME
from rt_plugin.pretrain.recipes import RECIPES

PLANS = Path(__file__).parent / "plans"
SCALES = ("smoke", "laptop", "laptop-causes", "laptop-gate", "laptop-mini", "one-gpu", "paper")
SEARCH, FINAL = "search", "final"


@dataclass(frozen=True)
class Arm:
    """One kind of model: --model of the launcher, and options of fairseq-train."""

    name: str
    model: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One pretraining."""

    stage: str
    arm: Arm
    learning_rate: float
    seed: int
    updates: int
    warmup_updates: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}-lr{self.learning_rate:g}-seed{self.seed}"

    def folder(self, out: Path) -> Path:
        """Its --save-dir."""
        return out / self.stage / self.name


@dataclass(frozen=True)
class Schedule:
    """A stage: updates and warm-up of its runs, their seeds and arms; `learning_rates` is empty for the final stage."""

    updates: int
    warmup_updates: int
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    learning_rates: tuple[float, ...] = ()
    extend_by: float = 2
    extensions: int = 0


@dataclass(frozen=True)
class Finetuning:
    """Which encoders are fine-tuned, and how: `sweeps` are pairs of tasks and seeds, `variants` name -> (arm, options).

    An arm is a variant of its own name without options.
    """

    variants: Mapping[str, tuple[str, tuple[str, ...]]]
    encoder_seed: int
    learning_rates: tuple[float, ...]
    epochs: int
    sweeps: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]
    comparisons: tuple[tuple[str, str], ...]

    def of(self, run: Run) -> list[str]:
        """The variants that the encoder of a final run is fine-tuned in."""
        return [
            name for name, (arm, _) in self.variants.items() if (arm, self.encoder_seed) == (run.arm.name, run.seed)
        ]

    @property
    def runs(self) -> int:
        """Fine-tunings of each variant."""
        return sum(len(tasks) * len(seeds) for tasks, seeds in self.sweeps) * len(self.learning_rates)


@dataclass(frozen=True)
class Plan:
    """A plan; the head of this file says what each part is, `source` is the file's content."""

    source: Mapping = field(repr=False)
    scale: str
    recipe: str
    launcher: tuple[str, ...]
    options: tuple[str, ...]
    arms: Mapping[str, Arm]
    search: Schedule
    final: Schedule
    mask_seed: int
    finetuning: Finetuning | None
    comparisons: tuple[tuple[str, str], ...]
    substitutes: Mapping[str, Sequence[str]]
    least_difference: float

    def search_runs(self, learning_rates: Sequence[float]) -> list[Run]:
        """All arms at these rates: the rates one after the other, so that the arms can be compared soon."""
        s = self.search
        return [
            Run(SEARCH, self.arms[arm], rate, seed, s.updates, s.warmup_updates)
            for rate in learning_rates
            for seed in s.seeds
            for arm in s.arms
        ]

    def final_runs(self, best: Mapping[str, float]) -> list[Run]:
        """The final runs of the arms that have a best rate: the seeds one after the other."""
        f = self.final
        return [
            Run(FINAL, self.arms[arm], best[arm], seed, f.updates, f.warmup_updates)
            for seed in f.seeds
            for arm in f.arms
            if arm in best
        ]


def load_plan(scale: str) -> Plan:
    """The plan of a scale's name or of a JSON file.

    Raises:
        UserError: there is no such file, it is no JSON, or a key is missing, unknown or wrong.
    """
    path = PLANS / f"{scale}.json" if scale in SCALES else Path(scale)
    try:
        source = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"SCALE {scale}: {error.strerror}; expected {', '.join(SCALES)} or the path of a plan"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); see the plans in {PLANS}") from None
    return read_plan(source, str(path))


def read_plan(source: Mapping, where: str) -> Plan:
    """Check a plan; `where` it is from, for errors.

    Raises:
        UserError: a key is missing, unknown or wrong.
    """
    try:
        arms = {name: Arm(name, arm["model"], tuple(arm["options"])) for name, arm in source["arms"].items()}
        evaluate, comparisons = source["evaluate"], _pairs(source["comparisons"])
        plan = Plan(
            source=source,
            scale=source["scale"],
            recipe=source["recipe"],
            launcher=tuple(source["launcher"]),
            options=tuple(source.get("options", ())),
            arms=arms,
            search=_schedule(source["search"], arms),
            final=_schedule(source["final"], arms),
            mask_seed=evaluate["mask_seed"],
            finetuning=_finetuning(evaluate["finetuning"], comparisons) if "finetuning" in evaluate else None,
            comparisons=comparisons,
            substitutes=source.get("substitutes", {}),
            least_difference=float(source["least_difference"]),
        )
        _check_cost_and_verdicts(source)
    except KeyError as error:
        raise UserError(f"{where}: no {error.args[0]!r} there; see the plans in {PLANS}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: {error}; see the plans in {PLANS}") from None
    _check_names(plan, where)
    return plan


def _schedule(stage: Mapping, arms: Mapping[str, Arm]) -> Schedule:
    kinds = {"extend_by": float, "extensions": int}
    rest = {name: kind(stage[name]) for name, kind in kinds.items() if name in stage}
    rates = tuple(sorted(float(rate) for rate in stage.get("learning_rates", ())))
    chosen = tuple(stage.get("arms", arms))
    return Schedule(int(stage["updates"]), int(stage["warmup_updates"]), tuple(stage["seeds"]), chosen, rates, **rest)


def _pairs(comparisons: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((a, b) for a, b in comparisons)


def _finetuning(part: Mapping, comparisons: Sequence[tuple[str, str]]) -> Finetuning:
    variants = {arm: (arm, ()) for arm in part["arms"]}
    for name, variant in part.get("variants", {}).items():
        if name in variants:
            raise ValueError(f"the variant {name!r} has the name of an arm that is fine-tuned")
        variants[name] = (variant["arm"], tuple(variant["options"]))
    if "comparisons" in part:
        comparisons = _pairs(part["comparisons"])
        if unknown := [name for pair in comparisons for name in pair if name not in variants]:
            raise ValueError(f"comparisons of finetuning name {unknown[0]!r}; fine-tuned are {', '.join(variants)}")
    return Finetuning(
        variants=variants,
        encoder_seed=int(part["encoder_seed"]),
        learning_rates=tuple(float(rate) for rate in part["learning_rates"]),
        epochs=int(part["epochs"]),
        sweeps=tuple((tuple(sweep["tasks"]), tuple(sweep["seeds"])) for sweep in part["sweeps"]),
        comparisons=tuple(pair for pair in comparisons if set(pair) <= variants.keys()),
    )


def _check_cost_and_verdicts(source: Mapping) -> None:
    for name in ("about", "otherwise"):
        source[name]
    for name in ("tokens_per_second", "unit", "source"):
        source["cost"][name]
    for verdict in source["verdicts"]:
        if not set(verdict["in_favour"]) <= set(range(1, len(source["comparisons"]) + 1)) or not verdict["says"]:
            raise ValueError(f"the verdict {verdict['says']!r} names a comparison that is not there")


def _check_names(plan: Plan, where: str) -> None:
    named = [*plan.search.arms, *plan.final.arms, *(arm for pair in plan.comparisons for arm in pair)]
    named += [arm for name, others in plan.substitutes.items() for arm in (name, *others)]
    named += [arm for arm, _ in plan.finetuning.variants.values()] if plan.finetuning else ()
    for name in named:
        if name not in plan.arms:
            raise UserError(f"{where}: arm {name!r} is not among its arms: {', '.join(plan.arms)}")
    if plan.recipe not in RECIPES:
        raise UserError(f"{where}: no recipe {plan.recipe!r}; known are {', '.join(RECIPES)}")
    if not plan.search.learning_rates or not plan.search.extend_by > 1:
        raise UserError(f"{where}: search needs learning_rates, and an extend_by above 1")
    if plan.finetuning and plan.finetuning.encoder_seed not in plan.final.seeds:
        raise UserError(f"{where}: encoder_seed {plan.finetuning.encoder_seed} is none of the final seeds")
    for tasks, _ in plan.finetuning.sweeps if plan.finetuning else ():
        if unknown := [task for task in tasks if task not in BY_NAME]:
            raise UserError(f"{where}: no task {unknown[0]!r}; known are {', '.join(BY_NAME)}")
