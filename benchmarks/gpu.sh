#!/usr/bin/env bash
# What to run on a machine with a GPU, about half an hour at most:
#
#     bash benchmarks/gpu.sh                 with the Python of .venv, else the one on the PATH
#     PYTHON=/path/to/python bash benchmarks/gpu.sh
#
# Golden tests, the main job, the time of its training step, and ours beside PyTorch (8 minutes at most). Prints one summary; status 0 when all went well.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

if [[ -z "${PYTHON:-}" ]]; then
    if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi

if ! devices=$(timeout 120 "$PYTHON" -c 'import jax; jax.devices("gpu"); print(jax.__version__, jax.devices())' 2>&1); then
    echo "error: JAX sees no GPU ($(tail -n 1 <<<"$devices")); install smoothsa_jax[cuda13], and unset JAX_PLATFORMS" >&2
    exit 1
fi
if command -v nvidia-smi >/dev/null; then nvidia-smi; fi
echo "JAX $devices"

folder=$(mktemp -d)
summary=()
failed=0

step() { # seconds allowed, title, command ...
    local limit=$1 title=$2 begin=$SECONDS status=0
    shift 2
    echo "== $title: $*"
    timeout --signal=TERM --kill-after=30 "$limit" "$@" || status=$?
    case $status in
        0) summary+=("ok      $((SECONDS - begin)) s  $title") ;;
        124 | 137) summary+=("TIMEOUT $((SECONDS - begin)) s  $title") ;;
        *) summary+=("FAILED  $((SECONDS - begin)) s  $title (status $status)") ;;
    esac
    if ((status != 0)); then failed=1; fi
}

# The tests choose the CPU unless told otherwise, and compile in a way meant for it.
step 600 "golden tests" env JAX_PLATFORMS=cuda,cpu XLA_FLAGS= "$PYTHON" -m pytest tests/test_golden.py
step 900 "main job" "$PYTHON" main.py --workdir="$folder/run"
step 300 "training step" "$PYTHON" benchmarks/train_step.py
recipe=(--config=configs/movi_c.py --config.model.backbone.weights=random)
step 240 "flags for XLA" "$PYTHON" benchmarks/xla_flags.py "${recipe[@]}" --rounds=3 --flags \
    xla_gpu_enable_triton_gemm=false xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,WHILE
step 240 "batch that fits" "$PYTHON" benchmarks/memory.py "${recipe[@]}"
# Ours beside PyTorch; what it prints is the table. Most of the time goes into compiling, about a minute a case (not run yet); none begins after 330 s.
if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    step 480 "against PyTorch" "$PYTHON" benchmarks/against_peer.py --device=gpu --json="$folder/against_peer.json" --seconds=330 \
        --cases train_movi_c images image train_coco clips train_movi_c@64 train_ytvis clip
else
    summary+=("skipped      against PyTorch: it is not installed, or sees no GPU (pip install torch)")
fi

echo
echo "summary ($(date -u +%F), JAX $devices)"
printf '  %s\n' "${summary[@]}"
echo "  the main job's files: $folder/run"
exit "$failed"
