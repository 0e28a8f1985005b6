#!/bin/sh
# The whole test suite on two workers. Tests whose system package is missing are left out, and said so at the end; so
# are those against real vLLM where its environment cannot be made.
# Arguments are passed on to pytest; WORKERS=4 changes the number of processes.
set -eu
cd "$(dirname "$0")/.."

# Two workers of one thread each: more only fight over the cores.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMP_NUM_THREADS

missing=$(scripts/system_packages.sh)
if ! .venv/bin/python scripts/setup_vllm.py >&2; then
    what="vLLM's environment could not be made, so tests against real vLLM are left out; scripts/setup_vllm.py says why"
    missing=$(printf '%s\nneeds_vllm\t%s' "$missing" "$what" | sed '/^$/d')
fi
left_out=$(printf '%s\n' "$missing" | cut -f 1 | sed '/^$/d; s/^/not /' | paste -s -d '&' | sed 's/&/ and /g')

# Tests of one file share fixtures that are dear (servers, models), so a file stays on one worker.
nothing=0
run() { # MARKS ARGUMENTS...: the tests with these marks; that there are none is no failure
    marks=$1
    shift
    code=0
    .venv/bin/python -m pytest -n "${WORKERS:-2}" --dist loadfile -m "$marks${left_out:+ and $left_out}" "$@" || code=$?
    if [ "$code" = 5 ]; then
        nothing=$((nothing + 1))
    elif [ "$code" != 0 ]; then
        status=$code
    fi
}

# vLLM's servers take every core: their tests come last, and alone, since others measure seconds.
status=0
run "not needs_vllm" "$@"
case "$missing" in
    *needs_vllm*) nothing=$((nothing + 1)) ;;
    *) run needs_vllm "$@" ;;
esac
if [ "$nothing" = 2 ]; then
    status=5
fi

if [ -n "$missing" ]; then
    printf '%s\n' "$missing" | cut -f 2- | while read -r line; do
        if [ -n "${NO_COLOR:-}" ]; then
            printf 'LEFT OUT: %s\n' "$line"
        else
            printf '\033[1;33mLEFT OUT: %s\033[0m\n' "$line"
        fi
    done
fi
exit "$status"
