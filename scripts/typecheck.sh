#!/bin/sh
# mypy, strict, on the package as it is installed: `quintain.envs`, not `envs`.
# mypy does not know setuptools' package-dir mapping, so a folder of links under build/types shows it the
# installed layout; messages name the real files again. Arguments are passed on to mypy.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
tree=build/types

mkdir -p "$tree/quintain"
find "$tree/quintain" -maxdepth 1 -xtype l -delete # what has been deleted or renamed since
for entry in quintain/*; do
    ln -sfn "../../../$entry" "$tree/$entry"
done
for room in envs rollout trainers verifiers; do
    ln -sfn "../../../$room" "$tree/quintain/$room"
done

scripts=$(cd scripts && for file in *.py; do printf ' -m %s' "${file%.py}"; done)
status=0
# shellcheck disable=SC2086 # one word for each module
report=$(MYPYPATH=$tree:scripts "$python" -m mypy "$@" -p quintain $scripts) || status=$?
printf '%s\n' "$report" |
    sed -E "s#$tree/quintain/(envs|rollout|trainers|verifiers)/#\1/#; s#$tree/quintain/#quintain/#"
exit "$status"
