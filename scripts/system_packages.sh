#!/bin/sh
# The one list of programs outside Python that tests need, and what to do about the missing ones.
# As root with apt they are installed; elsewhere nothing is changed. Printed on stdout: one line per program that
# is still missing, "MARKER<tab>what to install and what is left out", which run_tests.sh reads. Always exits 0.
set -eu

# Debian package | program that shows it is there | pytest marker of the tests that need it | what those test
needed='
docker.io | dockerd | needs_docker | the docker sandbox
g++ | g++ | needs_gxx | programs in C and C++
nodejs | node | needs_node | programs in JavaScript
bubblewrap | bwrap | needs_bubblewrap | the sandbox benchmark
'

log=$(mktemp)
trap 'rm -f "$log"' EXIT
updated=no
install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "system_packages: installing $1" >&2
    if [ "$updated" = no ]; then
        apt-get update -qq >"$log" 2>&1 || true # a stale list may still do
        updated=yes
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >>"$log" 2>&1 ||
        { tail -n 3 "$log" >&2; return 1; }
}

printf '%s\n' "$needed" | while IFS='|' read -r package program marker what; do
    package=$(echo $package) program=$(echo $program) marker=$(echo $marker) what=$(echo $what)
    [ -n "$package" ] || continue
    command -v "$program" >/dev/null || install "$package" || true
    command -v "$program" >/dev/null ||
        printf '%s\t%s\n' "$marker" "$package is missing, so tests of $what are left out; install it with your package manager (Debian: apt-get install $package)"
done

if [ "$(id -u)" != 0 ] && command -v dockerd >/dev/null; then
    printf 'needs_docker\tonly root can start dockerd, so tests of the docker sandbox are left out; run make test as root for them\n'
fi
