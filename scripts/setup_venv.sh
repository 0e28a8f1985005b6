#!/bin/sh
# Finds a Python that will do (3.11 or newer, able to make virtual environments); setup_venv.py does the rest with it.
# PYTHON=python3.12 names one; otherwise the existing .venv's is taken, then whatever the machine has.
set -eu
cd "$(dirname "$0")/.."

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
makes_venvs() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }
fail() { echo "setup_venv: error: $1" >&2; exit 1; }

if [ -n "${PYTHON:-}" ]; then
    candidates=$PYTHON
    wanted="PYTHON=$PYTHON is not a working Python 3.11 or newer ($("$PYTHON" -V 2>&1 | head -n 1))"
else
    # A name may be a shim of pyenv or asdf without a version behind it, so each is tried, not looked up.
    candidates=".venv/bin/python python3 python3.13 python3.12 python3.11 python3.14 python /usr/bin/python3"
    wanted="no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3.12 make venv"
fi

found=
for candidate in $candidates; do
    if new_enough "$candidate"; then
        found=$candidate
        if makes_venvs "$candidate"; then
            exec "$candidate" scripts/setup_venv.py
        fi
    fi
done
[ -n "$found" ] || fail "$wanted"

# Debian and Ubuntu ship Python without ensurepip.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup_venv: $found cannot make virtual environments; installing python3-venv"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv
fi
makes_venvs "$found" || fail "$found cannot make virtual environments (no ensurepip); on Debian install python3-venv"
exec "$found" scripts/setup_venv.py
