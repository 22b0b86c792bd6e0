#!/usr/bin/env bash
# Check the network on one GPU in 8 minutes, on a bare machine: no network, no Ray.
#
#   scripts/gpu_check.sh [--device cuda|cpu] [--toy] [--out FOLDER] [--wheels FOLDER]
#
# Every step has a time limit of its own and writes its rows as it goes; a step that fails does not end the check.
# The rows come to FOLDER (build/gpu), and the table of a GPU also to benchmarks/results/gpu, from which `make bench`
# or `python benchmarks/bench.py --page-only` writes docs/benchmarks.md. Packages that are missing are installed from
# the wheels that `make gpu-wheels` downloaded (build/gpu-wheels), into build/gpu-packages.
set -u
cd "$(dirname "$0")/.."

device=cuda toy="" out=build/gpu wheels=build/gpu-wheels python=${PYTHON:-python3}
while [ $# -gt 0 ]; do
    case "$1" in
        --device) device=$2; shift 2 ;;
        --toy) toy=--toy; shift ;;
        --out) out=$2; shift 2 ;;
        --wheels) wheels=$2; shift 2 ;;
        *) echo "unknown option $1" >&2; exit 2 ;;
    esac
done
mkdir -p "$out"
export PYTHONPATH="$PWD:$PWD/build/gpu-packages${PYTHONPATH:+:$PYTHONPATH}"
if ! "$python" -c "import pydantic, safetensors, anndata" 2>/dev/null && [ -d "$wheels" ]; then
    # without dependencies: torch, numpy and the like are the machine's own
    "$python" -m pip install --quiet --no-index --no-deps --target build/gpu-packages "$wheels"/*.whl || exit 1
fi

step() { # NAME SECONDS
    local start=$SECONDS code
    timeout -k 5 "$2" "$python" benchmarks/gpu.py "$1" --out "$out" --device "$device" $toy >"$out/$1.log" 2>&1
    code=$?
    echo "$code" >"$out/$1.exit"
    echo "$1: exit code $code, $((SECONDS - start)) of at most $2 s"
}
rm -f "$out"/*.exit "$out"/*.jsonl
step machine 60
step parity 90
step waits 75
step speed 110
step kernels 45
step ranks 60
step resume 30
exec "$python" benchmarks/gpu.py table --out "$out" --results benchmarks/results/gpu
