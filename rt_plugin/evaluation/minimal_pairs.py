"""Grammar without fine-tuning: how often a model finds the acceptable one of two sentences more probable.

DATA is a folder of JSON lines (*.jsonl) or one such file with sentence_good and sentence_bad, as BLiMP (Warstadt et al.
2020, arXiv 1912.00582) and the BabyLM evaluation have them; UID or the file's name is the paradigm. Sentences are
scored by pseudo-log-likelihood, see rt-plugin score; a tie counts as wrong. Published figures are of --mask token or
of --mask word: compare like with like.

    OUT/scores/PARADIGM.csv   the scores of both sentences of every pair, natural logarithms
    OUT/paradigms.csv, phenomena.csv   accuracies with 95 % intervals, as fractions; phenomena.csv ends with the means
    OUT/report.md, accuracy.png   the same for people
    OUT/settings.json         model, mask and data: a folder holds the results of one model and way of masking

--mask token word does both, into OUT/token and OUT/word, in less time than one after the other: a token that nothing
follows in its word is hidden in the same way by both.

After an interruption the same command goes on: what is in OUT/scores is not scored again. Intervals tell of the choice
of pairs, not of the luck of a training.

Example: rt-plugin minimal-pairs examples/checkpoints/recurrent_roberta_mini examples/minimal_pairs --out runs/pairs
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rt_plugin.console import commands
from rt_plugin.console.files import replacing, sha256
from rt_plugin.console.progress import Progress
from rt_plugin.errors import UserError
from rt_plugin.evaluation import pairs_report
from rt_plugin.evaluation.pairs import Pair, Paradigm, digest, read_paradigms
from rt_plugin.inference import MASKS
from rt_plugin.inference.arguments import add_checkpoint

if TYPE_CHECKING:
    from rt_plugin.inference.likelihood import PseudoLikelihood, Sentence

SETTINGS_FILE = "settings.json"
SCORES_FOLDER = "scores"
_COLUMNS = ("line", "good", "bad")
_AGAIN = "delete it, and run rt-plugin minimal-pairs again"


@dataclass(frozen=True)
class Settings:
    """What results depend on, and the names for the report.

    Attributes:
        model: a name for people.
        checkpoint: the first digits of its SHA-256.
        mask: see `PseudoLikelihood`.
        limit: pairs a paradigm; None for all.
        data: see `pairs.digest`.
        phenomena: paradigm -> phenomenon.
    """

    model: str
    checkpoint: str
    mask: str
    limit: int | None
    data: str
    phenomena: dict[str, str]

    @classmethod
    def load(cls, folder: Path) -> Settings:
        """Read the settings of a folder of results.

        Raises:
            UserError: there are none.
        """
        path = folder / SETTINGS_FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: cannot be read ({error}); expected a folder that rt-plugin minimal-pairs has written"
            ) from None

    def keep(self, folder: Path) -> None:
        """Write them into the folder; where there are some already, see whether results can be added.

        Raises:
            UserError: the folder holds results of something else.
        """
        path = folder / SETTINGS_FILE
        if path.exists():
            there = asdict(self.load(folder))
            for name in ("checkpoint", "mask", "limit", "data"):
                if there[name] != (here := getattr(self, name)):
                    raise UserError(
                        f"{folder}: holds results with {name} {there[name]}, this run has {name} {here}; "
                        "choose another --out"
                    )
        with replacing(path) as file:
            file.write((json.dumps(asdict(self), indent=1) + "\n").encode())


def score_paradigm(
    scorers: Sequence[PseudoLikelihood], paradigm: Paradigm, progress: Progress
) -> Iterator[list[tuple[float, float]]]:
    """For each scorer (good, bad): the scores of both sentences of every pair, natural logarithms.

    Args:
        scorers: of one model, with different ways of masking; at least one.

    Raises:
        UserError: a sentence is too long for the model (file and line).
    """
    sentences = [_encode(scorers[0], pair, text) for pair in paradigm.pairs for text in (pair.good, pair.bad)]
    known = {}
    for scorer in scorers:
        values = scorer(sentences, lambda share: progress.advance(share * len(paradigm.pairs)), known)
        scores = [float(value.sum()) for value in values]
        yield list(zip(scores[::2], scores[1::2], strict=True))


def _encode(scorer: PseudoLikelihood, pair: Pair, text: str) -> Sentence:
    try:
        return scorer.encode(text)
    except UserError as error:
        raise UserError(f"{pair.path}, line {pair.line}: {error}; leave the pair out") from None


def _write_scores(path: Path, paradigm: Paradigm, scores: Sequence[tuple[float, float]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((pair.line, good, bad) for pair, (good, bad) in zip(paradigm.pairs, scores, strict=True))
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def read_scores(folder: Path, paradigm: str) -> list[tuple[float, float]]:
    """(good, bad) for each pair of a paradigm, from a folder of results.

    Raises:
        UserError: the file is missing or broken.
    """
    path = _scores_file(folder, paradigm)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            scores = [(float(row["good"]), float(row["bad"])) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); {_AGAIN}") from None
    if not scores:
        raise UserError(f"{path}: no rows; {_AGAIN}")
    return scores


def _scores_file(folder: Path, paradigm: str) -> Path:
    return folder / SCORES_FOLDER / f"{paradigm}.csv"


def read_run(folder: Path) -> pairs_report.Run:
    """The results of a folder that is complete.

    Raises:
        UserError: it is not, or a file is broken.
    """
    settings = Settings.load(folder)
    scores = {name: read_scores(folder, name) for name in settings.phenomena}
    pairs = f"{settings.data} {settings.limit}"
    return pairs_report.Run(settings.model, settings.mask, pairs, scores, settings.phenomena)


def evaluate(args: argparse.Namespace) -> None:
    """The command's work."""
    whole = read_paradigms(args.data)
    paradigms = [paradigm.sample(args.limit) for paradigm in whole]
    outs = _folders(args.out, args.mask)
    beside = {mask: [read_run(_folders(folder, args.mask)[mask]) for folder in args.beside] for mask in args.mask}
    import torch

    from rt_plugin import hub
    from rt_plugin.inference.likelihood import PseudoLikelihood
    from rt_plugin.model_folder.checkpoint import checkpoint_path

    model = hub.from_pretrained(str(args.model), args.checkpoint)
    if torch.cuda.is_available() and not args.cpu:
        model = model.cuda()
    settings = Settings(
        model=args.name or args.model.resolve().name,
        checkpoint=sha256(checkpoint_path(args.model, args.checkpoint))[:16],
        mask=args.mask[0],
        limit=args.limit,
        data=digest(whole),
        phenomena={paradigm.name: paradigm.phenomenon for paradigm in paradigms},
    )
    scorers = {out: PseudoLikelihood(model, mask) for mask, out in outs.items()}
    try:
        for mask, out in outs.items():
            replace(settings, mask=mask).keep(out)
        _score_all(scorers, paradigms, str(args.out))
        for mask, out in outs.items():
            print(pairs_report.write_report([read_run(out), *beside[mask]], out))
    except OSError as error:
        raise UserError(f"{args.out}: cannot be written ({error.strerror}); choose another --out") from None
    commands.report(f"{', '.join(map(str, outs.values()))}: {', '.join(pairs_report.FILES)}")


def _folders(out: Path, masks: Sequence[str]) -> dict[str, Path]:
    """Mask -> where its results are: the folder itself if there is but one."""
    return {mask: out / mask if len(masks) > 1 else out for mask in masks}


def _score_all(scorers: Mapping[Path, PseudoLikelihood], paradigms: Sequence[Paradigm], name: str) -> None:
    """Score what is not there yet, for each folder with its scorer."""
    missing = [(p, [out for out in scorers if not _scores_file(out, p.name).is_file()]) for p in paradigms]
    left = [(paradigm, outs) for paradigm, outs in missing if outs]
    if len(left) < len(paradigms):
        commands.report(f"{name}: {len(paradigms) - len(left)} of {len(paradigms)} paradigms are done")
    with Progress(name, sum(len(paradigm.pairs) * len(outs) for paradigm, outs in left), "pairs") as progress:
        for paradigm, outs in left:
            found = score_paradigm([scorers[out] for out in outs], paradigm, progress)
            for out, scores in zip(outs, found, strict=True):
                _write_scores(_scores_file(out, paradigm.name), paradigm, scores)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("minimal-pairs", __doc__)
    parser.add_argument("model", metavar="MODEL", type=Path, help="a model folder")
    parser.add_argument("data", metavar="DATA", type=Path, help="folder of JSON lines, or one file")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder for the results of this model")
    add_checkpoint(parser)
    parser.add_argument(
        "--mask", nargs="+", choices=MASKS, default=[MASKS[0]], help=f"what is hidden (default: {MASKS[0]})"
    )
    parser.add_argument(
        "--limit", type=commands.positive, metavar="N", help="a fixed sample of N pairs of each paradigm (default: all)"
    )
    parser.add_argument("--name", help="of the model in the report (default: its folder's)")
    parser.add_argument(
        "--beside", nargs="+", default=[], metavar="DIR", type=Path, help="other --out folders, to be compared with"
    )
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    args = parser.parse_args(argv)
    args.mask = list(dict.fromkeys(args.mask))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("minimal-pairs", lambda: evaluate(args), "stopped; the same command goes on with the rest")
