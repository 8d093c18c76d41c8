#!/usr/bin/env bash
# Finds a Python that torch has wheels for and hands over to gptlab/cli/bootstrap.py.
#   bash setup.sh --demo    from nothing to a model that writes    bash setup.sh --help    the rest
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"

suits='import sys; sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 14)))'
found=""
# A name may be found and yet not run (a pyenv shim, a store's placeholder), so each is tried.
for name in python3.14 python3.13 python3.12 python3.11 python3.10 python3 python; do
    while IFS= read -r python; do
        "$python" -I -c "$suits" >/dev/null 2>&1 </dev/null || continue
        if "$python" -I -c 'import ensurepip, venv' >/dev/null 2>&1 </dev/null; then
            found="$python"
            break 2
        fi
        found="${found:-$python}" # it runs but cannot make environments: only if no other does
    done < <(type -ap "$name" || true)
done
if [ -z "$found" ]; then
    echo "setup: there is no Python 3.10 to 3.14 here, which torch needs: install one from" \
        "https://www.python.org/downloads or with your package manager, and run this again." >&2
    exit 2
fi
exec "$found" -I "$here/gptlab/cli/bootstrap.py" "$@"
