"""The error type for everything that a user can cause, and how fairseq's commands show it."""

import os
import sys

DEBUG_VARIABLE = "RT_PLUGIN_DEBUG"


class UserError(ValueError):
    """A mistake in options, files or data, told in one line: what, where, what was expected, what to do."""


class NoTextError(UserError):
    """A text of which the tokenizer leaves nothing, such as a blank one."""


class DivergenceError(UserError):
    """A training that cannot go on, because its loss or its gradients are not finite."""


def traces_are_wanted() -> bool:
    """Whether `rt-plugin --debug VERB`, or the environment variable RT_PLUGIN_DEBUG=1, asks for the trace of errors."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def _runs_fairseq_command() -> bool:
    folder, name = os.path.split(os.path.abspath(sys.argv[0] if sys.argv else ""))
    return name.startswith("fairseq-") or os.path.basename(folder) == "fairseq_cli"


def show_user_errors_in_one_line() -> None:
    """Under a fairseq command, let an uncaught `UserError`, or Ctrl-C, end with its one line instead of a traceback.

    Elsewhere (a notebook, somebody's own program) nothing changes: the error stays an exception.
    """
    if not _runs_fairseq_command():
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else fairseq-hydra-train prints a traceback of its own and exits
    previous = sys.excepthook

    def hook(kind, error, trace):
        if traces_are_wanted() or not isinstance(error, (UserError, KeyboardInterrupt)):
            previous(kind, error, trace)
        if not isinstance(error, (UserError, KeyboardInterrupt)):
            return
        sys.stdout.flush()
        line = f"error: {error}" if isinstance(error, UserError) else "interrupted; the same command resumes"
        print(f"rt_plugin: {line}", file=sys.stderr, flush=True)

    sys.excepthook = hook
