#!/usr/bin/env bash
# From a fresh checkout to a pretrained, fine-tuned and loaded recurrent RoBERTa; see --help for the options.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VIRTUAL_ENV:-$root/.venv}
python=$venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}
# A wrong option must not cost an installation. A Python that is missing or too old is for setup.sh to complain about.
if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  "$python" "$root/scripts/quickstart.py" --check-options "$@"
  case " $* " in *" --help "* | *" -h "* | *" --version "*) exit ;; esac
fi
bash "$root/scripts/setup.sh"
exec "$venv/bin/python" "$root/scripts/quickstart.py" "$@"
