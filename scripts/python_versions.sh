#!/usr/bin/env bash
# Run `make demo` and the fast tests under every supported Python that is installed here.
#
#   scripts/python_versions.sh [PYTHON …]
#
# Without arguments: each of python3.11, python3.12 and python3.13 on the PATH or under pyenv. Every Python has a
# virtual environment of its own in build/python-VERSION, which is kept; torch is several GB where only its CUDA
# build exists. Prints a line per Python and step, with the seconds; the exit code is 1 if any step failed.
set -u
cd "$(dirname "$0")/.."

pythons=("$@")
if [ ${#pythons[@]} = 0 ]; then
    for version in 3.11 3.12 3.13; do
        for candidate in "$(command -v "python$version")" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
            # a pyenv shim on the PATH may stand for a version that is not chosen: then it does not run
            if [ -x "$candidate" ] && "$candidate" -c "" 2>/dev/null; then
                pythons+=("$candidate")
                break
            fi
        done
    done
fi

failed=0
for python in "${pythons[@]}"; do
    version=$("$python" -c 'import platform; print(platform.python_version())') || exit 2
    folder="build/python-$version"
    mkdir -p "$folder"
    for target in install demo fast; do
        start=$SECONDS
        make "$target" PYTHON="$python" VENV="$folder/venv" DEMO="$folder/demo" >"$folder/$target.log" 2>&1
        code=$?
        echo "Python $version, make $target: exit code $code, $((SECONDS - start)) s, log $folder/$target.log"
        grep -E "^=+ .*(passed|failed).* =+$" "$folder/$target.log" | tail -n 1
        if [ "$code" != 0 ]; then failed=1; fi
    done
done
exit $failed
