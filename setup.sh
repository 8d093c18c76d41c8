#!/usr/bin/env bash
# Finds a Python version that torch supports and runs gptlab/cli/bootstrap.py with it.
#   bash setup.sh --demo    from nothing to a model that writes    bash setup.sh --help    the rest
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"

suits='import sys; sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 14)))'
found=""
# A name may exist and still not run (a pyenv shim, a placeholder of a store), so each is tried.
for name in python3.14 python3.13 python3.12 python3.11 python3.10 python3 python; do
    while IFS= read -r python; do
        "$python" -I -c "$suits" >/dev/null 2>&1 </dev/null || continue
        if "$python" -I -c 'import ensurepip, venv' >/dev/null 2>&1 </dev/null; then
            found="$python"
            break 2
        fi
        found="${found:-$python}" # it runs, but cannot create environments: the last choice
    done < <(type -ap "$name" || true)
done
if [ -z "$found" ]; then
    echo "setup: torch needs Python 3.10 to 3.14, and there is none here: install one from" \
        "https://www.python.org/downloads or with your package manager, and run this again." >&2
    exit 2
fi
exec "$found" -I "$here/gptlab/cli/bootstrap.py" "$@"
