#!/usr/bin/env bash
# Measures the model on one GPU within 8 minutes and prints one table:
#
#     bash benchmarks/gpu.sh                 with the Python of .venv, else the one on the PATH
#     PYTHON=/path/to/python bash benchmarks/gpu.sh
#     bash benchmarks/gpu.sh checks          runs golden tests, attention tests and the main job on the GPU instead
#     bash benchmarks/gpu.sh rehearse        runs the measurements with tiny models on any device
#
# The most important come first; the summary names those that ran out of time. The exit status is 0 if all succeeded.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
mode=${1:-measure}
budget=480

if [[ -z "${PYTHON:-}" ]]; then
    if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi

# The scripts use all devices that they see, and only one is measured.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*}
platform=gpu
if [[ $mode == rehearse ]]; then platform=; fi
if ! devices=$(timeout 120 "$PYTHON" -c "import jax; jax.devices('$platform' or None); print(jax.__version__, jax.devices())" 2>&1); then
    echo "error: JAX sees no GPU ($(tail -n 1 <<<"$devices")); install smoothsa_jax[cuda13], and unset JAX_PLATFORMS" >&2
    exit 1
fi
if command -v nvidia-smi >/dev/null; then nvidia-smi; fi
echo "JAX $devices"

folder=$(mktemp -d)
export BENCHMARK_TABLE=$folder/table.md      # every script appends its figures
export JAX_COMPILATION_CACHE_DIR=$folder/cache # scripts share compiled programs
summary=()
failed=0
end=$((SECONDS + budget))
if [[ $mode != measure ]]; then end=$((SECONDS + 3600)); fi

step() { # seconds allowed, title, command ...
    local limit=$1 title=$2 begin=$SECONDS status=0
    shift 2
    if ((end - SECONDS < limit)); then limit=$((end - SECONDS)); fi
    if ((limit < 10)); then
        summary+=("LEFT OUT      $title: no time was left")
        failed=1
        return
    fi
    echo "== $title: $*"
    timeout --signal=TERM --kill-after=10 "$limit" "$@" || status=$?
    case $status in
        0) summary+=("ok      $((SECONDS - begin)) s  $title") ;;
        124 | 137) summary+=("TIMEOUT $((SECONDS - begin)) s  $title") ;;
        *) summary+=("FAILED  $((SECONDS - begin)) s  $title (status $status)") ;;
    esac
    if ((status != 0)); then failed=1; fi
}

script() { # seconds allowed, script, arguments ...
    local limit=$1 name=$2
    shift 2
    step "$limit" "$name" "$PYTHON" "benchmarks/$name.py" "$@"
}

recipe=(--config=configs/movi_c.py --config.weights.encoder.source=random --config.dtype=bfloat16)
case $mode in
    checks) # By default the tests run on the CPU, with XLA flags for it.
        step 900 "golden tests" env JAX_PLATFORMS=cuda,cpu XLA_FLAGS= "$PYTHON" -m pytest -m "" tests/test_golden.py tests/test_attention.py tests/test_bfloat16.py
        step 900 "main job" "$PYTHON" main.py --workdir="$folder/run"
        ;;
    measure)
        script 80 predict --config.dtype=bfloat16 --batches=64,256,1024 --frames=200
        script 90 train_step "${recipe[@]}" # compiles MOVi-C's step, which the next script reuses
        if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
            script 200 against_peer --device=gpu --json="$folder/against_peer.json" --rounds=3 --seconds=140 --patience=100 \
                --cases train_movi_c images stream train_coco train_movi_c@64 train_ytvis clips
            if [[ -f benchmarks/recorded/gpu.json ]]; then script 10 check "$folder/against_peer.json" --partial; fi
        else
            summary+=("skipped      against PyTorch: it is not installed, or sees no GPU (pip install torch)")
        fi
        script 60 memory "${recipe[@]}" --batches=8,32,64
        ;;
    rehearse)
        recipe[0]=--config=configs/movi_c.py:smoke
        small=(--config.model.encoder.width=48 --config.model.encoder.depth=1 --config.model.encoder.num_heads=2 --config.data.image_size=64)
        script 300 predict --config.dtype=bfloat16 --batches=2 --frames=5 "${small[@]}"
        if "$PYTHON" -c 'import torch' 2>/dev/null; then
            script 300 against_peer --quick --rounds=1 --cases images stream --sides ours eager --json="$folder/against_peer.json"
        else
            summary+=("skipped      against PyTorch: it is not installed")
        fi
        script 300 train_step "${recipe[@]}" --steps=2
        script 300 memory "${recipe[@]}" --batches=1,2,4
        ;;
    *)
        echo "error: benchmarks/gpu.sh $mode is unknown; expected checks, rehearse or nothing" >&2
        exit 2
        ;;
esac

echo
echo "$(date -u +%F), JAX $devices"
if [[ -s $BENCHMARK_TABLE ]]; then
    echo "| what | figure | |"
    echo "| --- | --- | --- |"
    cat "$BENCHMARK_TABLE"
fi
printf '  %s\n' "${summary[@]}"
echo "  files: $folder"
exit "$failed"
