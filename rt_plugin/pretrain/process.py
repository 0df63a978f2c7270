"""One of several training processes: `torchrun ... -m rt_plugin.pretrain.process DATA <options of fairseq-train>`.

fairseq-train under torchrun needs the rank and the number of processes as options on a CPU, where it does not ask
torchrun's environment; without them every process trains by itself.
"""

import os
import sys

from rt_plugin._location import USER_DIR
from rt_plugin.console.commands import INTERRUPTED, show_trace
from rt_plugin.console.processes import end_with_parent
from rt_plugin.errors import UserError


def distributed_options(environment: dict[str, str]) -> list[str]:
    """fairseq-train's options for a process that torchrun started.

    Raises:
        UserError: torchrun did not start it.
    """
    try:
        rank, world_size, local_rank = (environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except KeyError as error:
        raise UserError(f"{error.args[0]} is not set in the environment; start the processes with torchrun") from None
    place = {"rank": rank, "world-size": world_size, "init-method": "env://"}
    options = [f"--distributed-{name}={value}" for name, value in place.items()]
    return [*options, "--distributed-no-spawn", f"--device-id={local_rank}"]


def main() -> None:
    """Train."""
    end_with_parent()  # of torchrun
    from fairseq_cli.train import cli_main

    try:
        arguments = sys.argv[1:]
        sys.argv[1:] = [*arguments, "--user-dir", str(USER_DIR), *distributed_options(os.environ)]
        cli_main()
    except KeyboardInterrupt:
        sys.stderr.write("rt_plugin: interrupted; the same command resumes\n")
        sys.exit(INTERRUPTED)
    except UserError as error:
        show_trace()
        sys.stderr.write(f"rt_plugin: error: {error}\n")  # in one piece: another process may be writing, too
        sys.exit(1)


if __name__ == "__main__":
    main()
