#!/bin/bash
# Train on two nodes under SLURM, one process a node with all of its GPUs.
# Not yet run on a cluster: tests/test_multi_host.py runs it on one machine, with a stand-in for srun.
#
#   sbatch docs/cluster/slurm.sh --config=configs/movi_c.py --workdir=/shared/runs/movi_c
#
# Submit it from the repository's root, with its environment active. All nodes must share the workdir. A requeued or
# resubmitted run resumes from its newest checkpoint.
#SBATCH --job-name=smoothsa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail

# Process 0 on the first node listens there; jobs on one node get different ports.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export COORDINATOR=${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 10000))

# srun does not inherit --cpus-per-task from sbatch, and would give each process one core.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 bash -c 'exec python main.py "$@" \
    --coordinator="$COORDINATOR" --num_processes="$SLURM_NTASKS" --process_id="$SLURM_PROCID"' main.py "$@"
