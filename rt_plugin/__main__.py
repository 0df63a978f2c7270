"""`rt-plugin VERB`, or `python -m rt_plugin VERB`: finds the verb, and imports nothing of the others."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from rt_plugin._version import __version__
from rt_plugin.console.commands import STANDARD_OUTPUT, closed_output, leave_quietly, tell_of_missing, tell_of_output
from rt_plugin.errors import DEBUG_VARIABLE

# verb -> the module whose main(argv) returns the exit status, and what it does
VERBS = {
    "backends": ("rt_plugin.backends", "which backends of the recurrence are there, and how to get the others"),
    "train-tokenizer": ("rt_plugin.text.train", "text -> a sentencepiece model and its dictionary"),
    "encode-text": ("rt_plugin.text.encode_file", "text -> the pieces that fairseq-preprocess reads"),
    "prepare-corpus": ("rt_plugin.corpus.prepare", "text of any size -> tokenizer and binarised data for pretraining"),
    "pretrain": ("rt_plugin.pretrain.launch", "pretrain with a recipe, on the devices that are there"),
    "fairseq": ("rt_plugin.pretrain.fairseq", "one of fairseq's own commands, the plugin imported first (Python 3.14)"),
    "plot": ("rt_plugin.pretrain.plot", "curves and a table of several trainings"),
    "unigram": ("rt_plugin.pretrain.unigram", "the perplexity that word counts alone reach"),
    "export": ("rt_plugin.export.command", "a trained model as people pass it on, with a model card"),
    "fill-mask": ("rt_plugin.inference.fill_mask", "the most probable tokens for each <mask> of a sentence"),
    "embed": ("rt_plugin.inference.embed", "a text file of any size -> one vector a line, as a numpy array"),
    "classify": ("rt_plugin.inference.classify", "the labels that a fine-tuned model gives to sentences"),
    "import-huggingface": ("rt_plugin.huggingface.importing", "a folder of transformers -> a model folder"),
    "prepare-glue": ("rt_plugin.glue.prepare", "GLUE's and SuperGLUE's files -> data for fine-tuning"),
    "finetune-glue": ("rt_plugin.glue.finetune", "fine-tune on every task, learning rate and seed"),
    "report-glue": ("rt_plugin.glue.report", "tables, differences and plots of such runs"),
    "glue-baselines": ("rt_plugin.glue.baselines", "the floor of such tables: what TF-IDF reaches without an encoder"),
    "predict-glue": ("rt_plugin.glue.predict", "predictions for rows of a file, or as a submission"),
    "score": ("rt_plugin.evaluation.score", "the pseudo-log-likelihood of sentences"),
    "minimal-pairs": ("rt_plugin.evaluation.minimal_pairs", "how often a model prefers the right sentence of a pair"),
    "show-recurrence": ("rt_plugin.evaluation.show_recurrence", "what a recurrence has learned, how far back it sees"),
    "replicate": ("rt_plugin.replicate.command", "a written plan of pretrainings, run, evaluated and reported"),
    "replicate-report": ("rt_plugin.replicate.report", "its tables and figures, from the CSV files alone"),
    "time-updates": ("rt_plugin.replicate.steps", "how long an update of each arm of a plan takes, side by side"),
    "held-out": ("rt_plugin.replicate.heldout", "loss on held-out text, by position and by frequency of the token"),
}


def describe() -> str:
    """The verbs, one line each."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {about}" for verb, (_, about) in VERBS.items()]
    usage = "usage: rt-plugin [--debug] VERB [options]     rt-plugin VERB --help     rt-plugin --version"
    return "\n".join([usage, "", "Recurrent RoBERTa for fairseq. The verbs:", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status. Ends quietly where nobody reads what it prints."""
    words = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is None:
        sys.stdout = closed_output()
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()  # the help, too, after which argparse leaves
    except BrokenPipeError:
        return leave_quietly()
    except (OSError, UnicodeEncodeError) as error:
        if "fairseq" in words[:2]:  # whose errors are fairseq's, of whatever it did
            raise
        return tell_of_output("rt-plugin", error, STANDARD_OUTPUT)


def _run(words: list[str]) -> int:
    if words[:1] == ["--debug"]:
        os.environ[DEBUG_VARIABLE] = "1"  # for the programs, too, that a verb starts
        words = words[1:]
    verb, *rest = words or ["--help"]
    if verb in ("-h", "--help"):
        print(describe())
        return 0
    if verb == "--version":
        print(f"rt-plugin {__version__}")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(VERBS)}"
        print(f"rt-plugin: error: there is no verb {verb!r}; {meant}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(VERBS[verb][0]).main(rest)
    except ModuleNotFoundError as error:  # in a checkout that is not installed
        return tell_of_missing(f"rt-plugin {verb}", error)


if __name__ == "__main__":
    raise SystemExit(main())
