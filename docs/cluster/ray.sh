#!/bin/bash
# Run a command with --engine=ray on the nodes of a SLURM job: Ray starts on all of them, the command on the first, and
# Ray stops when the command ends.
# Validated, not run on a cluster: tests/test_ray_files.py runs it on one machine, with stand-ins for srun and Ray.
#
#   sbatch docs/cluster/ray.sh python main.py --mode=predict --workdir=/shared/runs/movi_c \
#       --input='/shared/clips/*.mp4' --output=/shared/found
#   sbatch docs/cluster/ray.sh python -m data.prepare movi_c --source=/shared/movi_c --out=/shared/prepared/movi_c
#
# Submit it from the repository's root, with its environment active (with the extra `ray`). All nodes must share that
# folder and those that the command names. A requeued or resubmitted job does what is missing.
#SBATCH --job-name=smoothsa-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if (( $# == 0 )); then
    echo "expected: ray.sh COMMAND [ITS OPTIONS], such as python main.py --mode=evaluate --workdir=..." >&2
    exit 2
fi
# The head of Ray, on the first node; jobs on one node get different ports.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 10000))
export RAY_USAGE_STATS_ENABLED=0
# Ray of this job lets in who has this token. Otherwise the head would ask for that of a user who has one, ~/.ray/auth_token,
# and other nodes would not send it.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600 # seconds, for slow file systems

# srun does not inherit --cpus-per-task from sbatch, and would give each task one core.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_NNODES" --num-cpus="$SLURM_CPUS_PER_TASK" -- \
    "$@" --engine=ray --address=auto
