#!/bin/sh
# The tests on two workers: `run_tests.sh quick|slow|all [PYTEST ARGUMENTS]`. The slow ones carry the marker `slow`:
# whole runs, real vLLM, docker, packaging, soaks. Tests whose system package is missing are left out, and said so at
# the end; so are those against real vLLM where its environment cannot be made.
# WORKERS=4 changes the number of processes, each of one thread. They wait half of their time for what they start, so
# three are quicker on two cores; but what is timed beside them is then late now and then.
set -eu
cd "$(dirname "$0")/.."
which=${1:-}
case "$which" in
    quick | slow | all) shift ;;
    *) echo "run_tests: expected quick, slow or all, got '$which'" >&2; exit 2 ;;
esac

OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMP_NUM_THREADS
workers=${WORKERS:-2}
# The many processes that tests start find our modules compiled, from the second on.
unset PYTHONDONTWRITEBYTECODE

# vLLM's environment is wanted last, and what is installed waits for the network and the disk: it is made meanwhile.
if [ "$which" != quick ]; then
    .venv/bin/python scripts/setup_vllm.py >&2 &
    vllm=$!
    trap 'kill "$vllm" 2>/dev/null || :; exit 130' INT TERM
fi

missing=$(scripts/system_packages.sh)
left_out=$(printf '%s\n' "$missing" | cut -f 1 | sed '/^$/d; s/^/not /' | paste -s -d '&' | sed 's/&/ and /g')

# Tests of one file share fixtures that are dear, so they stay on one worker (tests/conftest.py says more).
status=0 ran=0
run() { # MARKS ARGUMENTS...: the tests with these marks; that there are none is no failure
    marks=$1
    shift
    code=0
    .venv/bin/python -m pytest -n "$workers" --dist loadfile -m "$marks${left_out:+ and $left_out}" "$@" || code=$?
    if [ "$code" != 5 ]; then
        ran=1
        [ "$code" = 0 ] || status=$code
    fi
}

if [ "$which" != slow ]; then
    run "not slow" "$@"
fi
if [ "$which" != quick ]; then
    run "slow and not needs_vllm" "$@"
    # vLLM's servers take every core: their tests come last, and alone, since others measure seconds.
    if wait "$vllm"; then
        [ "$workers" -le 2 ] || workers=2
        run "slow and needs_vllm" -o testpaths=tests/rollout/vllm "$@" # no other test is imported for them
    else
        what="vLLM's environment could not be made, so tests against real vLLM are left out; scripts/setup_vllm.py says why"
        missing=$(printf '%s\nneeds_vllm\t%s' "$missing" "$what" | sed '/^$/d')
    fi
fi
if [ "$ran" = 0 ]; then
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
