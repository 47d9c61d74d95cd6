#!/usr/bin/env bash
# Workers on one study as an array of jobs: each takes one trial after the other until the study's budget is used up.
#
#   sbatch --array=0-7 slurm/sweep.sh configs/report/batch-size.yaml --data.root data/celeba     # eight workers
#   sbatch slurm/sweep.sh study.yaml                                                             # one
#   sbatch --array=0-3 --gpus-per-node=2 slurm/sweep.sh study.yaml              # trials of two ranks, a GPU each
#   sbatch --array=0-3 slurm/sweep.sh study.yaml --workers-per-gpu 4            # four small trials at a time on a GPU
#   sbatch --array=0-3 --gpus-per-node=0 slurm/sweep.sh study.yaml              # on CPUs
#
# Say so in the repository, on a file system that all nodes see and whose locks hold between them (flock). Options of
# sbatch, given before the name of this file, win over the lines below; what comes after the name is for `distrib sweep`.
# More workers may join, and workers may go, at any time: a trial whose worker is gone is taken up by another.

##SBATCH --account=my-account      # take one # away, and put in your own, where the cluster wants them
##SBATCH --partition=my-partition
#SBATCH --gpus-per-node=1          # a rank each; some clusters want --gres=gpu:1 instead
#SBATCH --time=24:00:00            # a worker is requeued until the study is done; longer than an epoch
#export WANDB_MODE=offline         # the compute nodes have no way out: slurm/wandb_sync.sh uploads later

#SBATCH --job-name=distrib-sweep
#SBATCH --output=%x-%A-%a.log      # in the folder where sbatch was called; a worker each
#SBATCH --open-mode=append         # one log, however often the worker is requeued
#SBATCH --requeue                  # after a node that fails, too
#SBATCH --signal=B:USR1@180        # three minutes before the limit: enough to save and to leave
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-gpu=12          # to read and decode, for each rank; ask for fewer where nodes have fewer
#SBATCH --mincpus=8                # a job's without GPUs, and the least with them
#SBATCH --mem=64G

set -euo pipefail

say() {
    printf 'distrib: %s\n' "$1"
}
refuse() {
    printf 'distrib: error: %s\n' "$1" >&2
    exit 2
}

[ -n "${SLURM_JOB_ID:-}" ] ||
    refuse "slurm/sweep.sh is a job: say sbatch --array=0-3 slurm/sweep.sh STUDY, or without Slurm distrib sweep STUDY"
[ -f "${1:-}" ] || refuse "${1:-nothing} is not a file in $PWD on $(hostname): name a study, such as study.yaml"
# Slurm runs a copy of this file, so that the folder of the submission is what is left to go by.
[ ! -x .venv/bin/distrib ] || PATH="$PWD/.venv/bin:$PATH"
export PATH SLURM_EXPORT_ENV=ALL SRUN_EXPORT_ENV=ALL # whatever sbatch --export has left out
command -v distrib >/dev/null ||
    refuse "$PWD has no .venv, and there is no other distrib on $(hostname): submit in the repository"

# The number of an array's last job is the array's own, by which Slurm takes all of it.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

asked='' worker=''
ask() { # USR1 before the time limit, TERM when the job is cancelled
    asked=$1
    say "$1 from Slurm: the trial under way is to save and to leave"
    [ -z "$worker" ] || kill -TERM "$worker" || true
}
trap 'ask USR1' USR1
trap 'ask TERM' TERM

# A GPU that torch cannot use is said, instead of training on the CPU; what the command line says comes later, and wins.
gpus=${SLURM_GPUS_ON_NODE:-0} device=()
[[ $gpus -eq 0 || ${SLURM_GPUS_PER_NODE:-} == 0 ]] || device=(--run.device cuda)

each=--workers # of which a GPU has several at a time by the other option alone
[ "$gpus" -eq 0 ] || each=--workers-per-gpu
folder=studies/$(basename "${1%.*}") previous='' at_a_time=1 arguments=("$1" "${device[@]}")
for word in "${@:2}"; do
    # What has failed is tried again once, and not whenever the job is requeued.
    [[ $word == --retry-failed && ${SLURM_RESTART_COUNT:-0} -gt 0 ]] || arguments+=("$word")
    [ "$previous" != --folder ] || folder=$word
    [[ $word != --folder=* ]] || folder=${word#--folder=}
    [[ ! "$previous=$word" =~ (^|=)$each=([1-9][0-9]{0,3})$ ]] || at_a_time=${BASH_REMATCH[2]}
    previous=$word
done

# A node may be shared: take the cores that the job has, and no more. A trial has a rank a GPU, or 2 without, unless the
# study says run.ranks.
ranks=$(((gpus > 0 ? gpus : 2) * at_a_time)) cpus=${SLURM_CPUS_ON_NODE:-}
[ -z "$cpus" ] || export OMP_NUM_THREADS=$((cpus > ranks ? cpus / ranks : 1))

marks() { # how far the study has come, whoever worked on it
    { find "$folder/trials" -maxdepth 3 \( -name 'step-*' -o -name '*.lock' \) 2>/dev/null || true; } | sort | cksum
}

starts=$((${SLURM_RESTART_COUNT:-0} + 1)) had=$(marks)
say "job $SLURM_JOB_ID, worker ${SLURM_ARRAY_TASK_ID:-0}, start $starts"
distrib sweep "${arguments[@]}" & # in the background: traps wait for what runs in the foreground
worker=$!
[ -z "$asked" ] || kill -TERM "$worker" || true
while kill -0 "$worker" 2>/dev/null; do wait "$worker" || true; done # a trap ends a wait, but not the worker
wait "$worker" && exit 0 || status=$?

# 143: the signal came while the program was still starting.
[[ $asked == USR1 && ($status -eq 75 || $status -eq 143) ]] || exit "$status"
if [ "$starts" -ge 3 ] && [ "$(marks)" = "$had" ]; then
    say "job $SLURM_JOB_ID has come no step further in this start, its $starts., and ends: ask for more --time"
    exit 75
fi
say "requeues job $SLURM_JOB_ID"
trap '' TERM USR1
scontrol requeue "$job" || exit 75
