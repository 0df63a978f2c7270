#!/usr/bin/env bash
# From a fresh checkout to a pretrained, fine-tuned and loaded recurrent RoBERTa; see --help for the options.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"${PYTHON:-python3}" "$root/scripts/quickstart.py" --check-options "$@" # a wrong option must not cost an installation
case " $* " in *" --help "* | *" -h "*) exit ;; esac
bash "$root/scripts/setup.sh"
exec "${VIRTUAL_ENV:-$root/.venv}/bin/python" "$root/scripts/quickstart.py" "$@"
