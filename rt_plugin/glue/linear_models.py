"""What can be predicted without an encoder: the most frequent class, cosines, and linear models over words."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier

from rt_plugin.errors import UserError
from rt_plugin.glue import metrics as glue_metrics
from rt_plugin.glue.hold_out import is_held_out
from rt_plugin.glue.readers import Example, read_examples
from rt_plugin.glue.results import SCORE
from rt_plugin.glue.specs import GlueTask

MAJORITY, COSINE, TFIDF = "majority", "cosine", "tf-idf"
FOLDS = 5
_ROWS_TO_CHOOSE_ON = 10_000
_STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # C of logistic regression, 1 / alpha of ridge regression
_RANDOM_SEED = 20180420  # any: the same input gives the same rows
_TOKENS = r"\w+|[^\w\s]"
_NEGATIONS = frozenset(("no", "not", "never", "nobody", "nothing", "none", "n't", "t"))


class Vectors:
    """TF-IDF vectors of words (1 and 2 grams) and of characters (2 to 5, within words), fitted on texts.

    Args:
        texts: to fit on; every different one counts once.
    """

    def __init__(self, texts: Sequence[str]):
        kinds = {
            "words": TfidfVectorizer(ngram_range=(1, 2), token_pattern=_TOKENS, min_df=2, sublinear_tf=True),
            "characters": TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True),
        }
        different = list(dict.fromkeys(texts))
        self._kinds = {name: kind.fit(different) for name, kind in kinds.items()}

    def __call__(self, kind: str, texts: Sequence[str]) -> scipy.sparse.csr_matrix:
        """(texts, features), rows of length 1; `kind`: "words" or "characters"."""
        places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        matrix = self._kinds[kind].transform(list(places))
        return matrix[[places[text] for text in texts]]


@dataclass(frozen=True)
class Choice:
    """What cross-validation chooses among: the features, the strength C, and whether classes count the same."""

    features: str
    strength: float
    balanced: bool

    def __str__(self) -> str:
        return f"{self.features}, C = {self.strength:g}{', balanced' if self.balanced else ''}"


def features_of(vectors: Vectors, examples: Sequence[Example]) -> dict[str, scipy.sparse.csr_matrix]:
    """The sets of features to choose among, each (rows, features)."""
    columns = list(zip(*(example.texts for example in examples), strict=True))
    words, characters = ([vectors(kind, column) for column in columns] for kind in ("words", "characters"))
    if len(columns) == 1:
        return {"words": words[0], "words and characters": _beside(words[0], characters[0])}
    cosines = np.stack([cosine(*words), cosine(*characters)], axis=1)
    overlap = scipy.sparse.csr_matrix(np.concatenate([cosines, _overlap(*columns)], axis=1))
    first, second = words
    return {"overlap": overlap, "overlap and words": _beside(overlap, abs(first - second), first.multiply(second))}


def _beside(*parts) -> scipy.sparse.csr_matrix:
    return scipy.sparse.hstack(parts).tocsr()


def cosine(first: scipy.sparse.csr_matrix, second: scipy.sparse.csr_matrix) -> np.ndarray:
    """(rows,) of two matrices with rows of length 1."""
    return np.asarray(first.multiply(second).sum(axis=1)).ravel()


def _overlap(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """(rows, 8): shares of common words, lengths, differing numbers and negations."""
    analyze = TfidfVectorizer(token_pattern=_TOKENS).build_analyzer()
    words = {text: analyze(text) for text in dict.fromkeys([*first, *second])}
    return np.array([_compare(words[a], words[b]) for a, b in zip(first, second, strict=True)])


def _compare(a: Sequence[str], b: Sequence[str]) -> list[float]:
    in_a, in_b = set(a), set(b)
    common = len(in_a & in_b)
    shares = [common / max(1, len(part)) for part in (in_a, in_b, in_a | in_b)]
    lengths = [math.log1p(len(a)), math.log1p(len(b)), math.log1p(len(b)) - math.log1p(len(a))]
    numbers = any(word.isdigit() for word in in_a ^ in_b)
    return [*shares, *lengths, float(numbers), float(bool(in_a & _NEGATIONS) != bool(in_b & _NEGATIONS))]


def _fit(task: GlueTask, choice: Choice, features: scipy.sparse.csr_matrix, labels: np.ndarray):
    if task.is_regression:
        return Ridge(alpha=1 / choice.strength).fit(features, labels)
    weights = "balanced" if choice.balanced else None
    model = LogisticRegression(
        C=choice.strength, class_weight=weights, solver="liblinear", max_iter=1000, random_state=_RANDOM_SEED
    )
    # one class against the others: with three classes at once it takes ten times as long
    return (model if task.num_classes == 2 else OneVsRestClassifier(model)).fit(features, labels)


def _outputs(task: GlueTask, model, features: scipy.sparse.csr_matrix) -> np.ndarray:
    """What `metrics.evaluate` reads: (rows, classes), or (rows, 1); classes that the train set lacks have 0."""
    if task.is_regression:
        return model.predict(features).reshape(-1, 1)
    outputs = np.zeros((features.shape[0], task.num_classes))
    outputs[:, model.classes_] = model.predict_proba(features)
    return outputs


def choose(
    task: GlueTask, features: dict[str, scipy.sparse.csr_matrix], labels: np.ndarray, groups: np.ndarray
) -> Choice:
    """The choice with the highest headline score over all folds of the train set; rows of a group stay together."""
    members = np.unique(groups, return_inverse=True)[1]
    order = np.random.default_rng(_RANDOM_SEED).permutation(members.max() + 1)[members]
    rows = np.sort(np.argsort(order, kind="stable")[:_ROWS_TO_CHOOSE_ON])
    fold_of = order[rows] % FOLDS
    folds = [(fold_of != fold, fold_of == fold) for fold in np.unique(fold_of)]
    balances = (False,) if task.is_regression else (False, True)
    choices = [Choice(*values) for values in itertools.product(features, _STRENGTHS, balances)]
    scores = []
    for choice in choices:
        outputs = np.zeros((len(rows), task.num_classes))
        for train, held_out in folds:
            model = _fit(task, choice, features[choice.features][rows[train]], labels[rows[train]])
            outputs[held_out] = _outputs(task, model, features[choice.features][rows[held_out]])
        scores.append(evaluate(task, outputs, labels[rows], groups[rows])[SCORE])
    return choices[int(np.argmax(np.nan_to_num(scores, nan=-math.inf)))]


def evaluate(task: GlueTask, outputs: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    values = glue_metrics.evaluate(task.metrics, outputs, labels, groups)
    return {SCORE: float(np.mean([values[name] for name in task.headline])), **values}


@dataclass(frozen=True)
class Split:
    """The rows of a file: examples, (rows,) labels, and (rows,) groups (the row's own number where there are none)."""

    examples: list[Example]
    labels: np.ndarray
    groups: np.ndarray

    @classmethod
    def read(cls, task: GlueTask, name: str, path: Path) -> "Split":
        """Read a file of a task that has labels.

        Raises:
            UserError: see `read_examples`; or there are no rows.
        """
        examples = list(read_examples(task, name, path, advice="correct the file"))
        if not examples:
            raise UserError(f"{path}: no rows; expected the {task.official}{name} file of {task.name}")
        labels = np.array([example.label for example in examples])
        groups = [i if example.group is None else example.group for i, example in enumerate(examples)]
        return cls(examples, labels, np.array(groups))

    def divide(self, share: float, path: Path) -> tuple["Split", "Split"]:
        """(the rest, a share that is held out), see `is_held_out`.

        Raises:
            UserError: either has no rows; `path`, the file, is named.
        """
        held = np.array([is_held_out(example.texts[0], share) for example in self.examples])
        if held.all() or not held.any():
            raise UserError(f"{path}: --hold-out {share:g} of {len(held):,} rows leaves a side without rows")
        return self._rows(~held), self._rows(held)

    def _rows(self, chosen: np.ndarray) -> "Split":
        examples = [self.examples[i] for i in np.flatnonzero(chosen)]
        return Split(examples, self.labels[chosen], self.groups[chosen])


def predict(task: GlueTask, train: Split, others: Sequence[Split]) -> Iterator[tuple[str, str, list[np.ndarray]]]:
    """(model, what was chosen, its outputs for each of the other splits), one model after the other."""
    if task.is_regression:
        constant = np.array([train.labels.mean()])
    else:
        constant = np.bincount(train.labels, minlength=task.num_classes) / len(train.labels)
    yield MAJORITY, "", [np.tile(constant, (len(split.labels), 1)) for split in others]
    vectors = Vectors([text for example in train.examples for text in example.texts])
    if task.is_regression:
        columns = [list(zip(*(example.texts for example in split.examples), strict=True)) for split in others]
        cosines = [cosine(*(vectors("characters", column) for column in pair)) for pair in columns]
        yield COSINE, "characters", [values.reshape(-1, 1) for values in cosines]
    features = features_of(vectors, train.examples)
    choice = choose(task, features, train.labels, train.groups)
    model = _fit(task, choice, features[choice.features], train.labels)
    found = (features_of(vectors, split.examples)[choice.features] for split in others)
    yield TFIDF, str(choice), [_outputs(task, model, rows) for rows in found]
