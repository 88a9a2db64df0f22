#!/usr/bin/env bash
# A sweep as an array of SLURM: one task, on one GPU, for each line of a file and each seed.
# Not yet run on a cluster: tests/test_sweep.py runs it on one machine.
#
#   cat sweep.txt
#       # the options of main.py, a run on each line
#       --config=sprites:gaussian
#       --config=sprites:gaussian --config.optimizer.learning_rate.peak=1e-4
#   sbatch --array=0-5%4 docs/cluster/sweep.sh sweep.txt 3 /shared/runs/sweep --config.log.wandb=sweep
#
# Here 2 lines with seeds 0, 1, 2 are tasks 0 to 5, of which 4 run at a time. Task 4 is line 2 with seed 1, in
# /shared/runs/sweep/2_seed1; options behind the folder are for all runs. A requeued or resubmitted task resumes from its
# newest checkpoint, and a finished one is only scored. Submit it with the environment active, from the repository's root,
# or from anywhere if the package is installed.
#SBATCH --job-name=smoothsa-sweep
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sweep_%A_%a.out
#SBATCH --signal=B:TERM@120
set -euo pipefail

if (( $# < 3 )) || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "expected: sweep.sh FILE NUMBER_OF_SEEDS FOLDER [options of all runs]" >&2
    exit 2
fi
file=$1 seeds=$2 folder=$3
shift 3
if ! [[ -r $file ]]; then
    echo "$file cannot be read; give a file with the options of a run on each line" >&2
    exit 2
fi
mapfile -t lines < <(grep -Ev '^[[:space:]]*(#|$)' "$file")
if (( ${#lines[@]} == 0 )); then
    echo "$file has no line; give a file with the options of a run on each line" >&2
    exit 2
fi
task=${SLURM_ARRAY_TASK_ID:?is not set: submit with sbatch --array=0-$((${#lines[@]} * seeds - 1))}
number=$((task / seeds)) seed=$((task % seeds))
if (( number >= ${#lines[@]} )); then
    echo "task $task is beyond the ${#lines[@]} lines of $file with $seeds seeds each: --array=0-$((${#lines[@]} * seeds - 1))" >&2
    exit 2
fi
mapfile -d '' -t options < <(xargs printf '%s\0' <<< "${lines[number]}") # quotes as in a shell

command=(python main.py)
[[ -f main.py ]] || command=(smoothsa)
# exec: the program takes this shell's place, to which B: above sends the signal. It saves and leaves.
exec "${command[@]}" "${options[@]}" "$@" --config.seed="$seed" --workdir="$folder/$((number + 1))_seed$seed"
