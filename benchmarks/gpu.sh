#!/usr/bin/env bash
#
# Everything that a GPU is wanted for, in order of value, within a given time. Each part prints its table
# and leaves it in a file of its own; a part that fails does not keep the next ones from running.
#
#   bash benchmarks/gpu.sh [--minutes 25] [--out gpu-results] [PART ...]
#
#   tests           the tests that use a GPU; a GPU that is not found is a failure
#   rays            absorption factors on the GPU and on the CPU (benchmarks/absorption.py)
#   reconstruction  back-projections (benchmarks/reconstruction.py)
#   simulation      virtual projections (benchmarks/simulation.py)
#   inference       labels of a tomogram (benchmarks/segmentation.py speed)
#   sam2            refinement of labels by SAM-2 (benchmarks/segmentation.py sam2)
#   training        the network, on virtual samples, for the time that is left
#
# Without names: all, in this order. Needs no DIALS: parts of tests that need it are skipped.
#
#   PYTHON   the interpreter (default: python3, where its torch finds a GPU; else tools/dials-env python)
#   WHEELS   a folder of wheels to install first, without a network, for machines that lack packages

set -uo pipefail

checkout=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
cd "$checkout" || exit 1
minutes=25
out=gpu-results
all=(tests rays reconstruction simulation inference sam2 training)
parts=()
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=$2 && shift 2 ;;
        --out) out=$2 && shift 2 ;;
        --help | -h) sed -n '3,22s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
        *)
            [[ " ${all[*]} " == *" $1 "* ]] || {
                printf 'gpu.sh: no part is called %s; there are %s.\n' "$1" "${all[*]}" >&2
                exit 2
            }
            parts+=("$1")
            shift
            ;;
    esac
done
[ ${#parts[@]} -gt 0 ] || parts=("${all[@]}")
deadline=$((SECONDS + minutes * 60))
mkdir -p "$out"

# ---- the environment ---------------------------------------------------------------------------------

finds_gpu() { "$@" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }

if [ -n "${PYTHON:-}" ]; then
    python=("$PYTHON")
elif finds_gpu python3; then
    python=(python3)
else
    python=(tools/dials-env python)
fi
if [ -n "${WHEELS:-}" ]; then
    "${python[@]}" -m pip install -q --no-index --no-deps --target "$out/site" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH=$checkout/$out/site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1

{
    printf 'commit %s, %s\n' "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "$(date -u +%Y-%m-%dT%H:%MZ)"
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null
    "${python[@]}" - <<'PY'
import importlib, os, platform

print(platform.python_version(), len(os.sched_getaffinity(0)), "cores")
for name in ("numpy", "numba", "torch", "cupy", "dials", "sam2", "trimesh", "xraylib", "procrunner"):
    try:
        print(f"  {name:12}", getattr(importlib.import_module(name), "__version__", "present"))
    except Exception as error:
        print(f"  {name:12} absent ({error})")
PY
} | tee "$out/machine.txt"
finds_gpu "${python[@]}" || printf 'gpu.sh: torch finds no GPU with %s\n' "${python[*]}" >&2

# ---- the parts ----------------------------------------------------------------------------------------

failed=()

# part NAME LIMIT_MINUTES COMMAND ...: runs a command, its output in NAME.txt, no longer than is left.
part() {
    local name=$1 limit=$(($2 * 60)) left=$((deadline - SECONDS)) start=$SECONDS
    shift 2
    [[ " ${parts[*]} " == *" ${name%%-*} "* ]] || return 0
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 20 ]; then
        printf '\n==> %s: no time is left for it\n' "$name"
        failed+=("$name")
        return 0
    fi
    printf '\n==> %s (at most %d s): %s\n' "$name" "$limit" "$*"
    if timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/$name.txt"; then
        printf '==> %s: done (%d s)\n' "$name" $((SECONDS - start))
    else
        printf '==> %s: FAILED or out of time (%d s)\n' "$name" $((SECONDS - start))
        failed+=("$name")
    fi
}

part tests 6 "${python[@]}" -m pytest tests/test_ray_tracing.py tests/test_factors.py tests/test_wavefield.py \
    tests/test_reconstruction.py tests/test_network.py tests/test_inference.py \
    -q -p no:cacheprovider -m "not slow" -k "cuda or gpu or GPU" --require=gpu
part rays 3 "${python[@]}" benchmarks/absorption.py volume curve --device cuda
part rays-cpu 3 "${python[@]}" benchmarks/absorption.py volume --device cpu
part reconstruction 3 "${python[@]}" benchmarks/reconstruction.py --sizes 512 1024 2048 --projections 900
part simulation 3 "${python[@]}" benchmarks/simulation.py --devices cuda cpu
part inference 2 "${python[@]}" benchmarks/segmentation.py speed --slices 64 --device cuda
part sam2 3 "${python[@]}" benchmarks/segmentation.py sam2 --slices 16 --device cuda
# what is left, less a minute for evaluation and writing
left=$(((deadline - SECONDS) / 60 - 1))
part training "$((left + 1))" "${python[@]}" benchmarks/training.py "$out/training" --minutes "$left" --device cuda

printf '\n==> tables in %s' "$out"
if [ ${#failed[@]} -gt 0 ]; then
    printf '; failed: %s\n' "${failed[*]}"
    exit 1
fi
printf '\n'
