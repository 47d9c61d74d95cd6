#!/usr/bin/env bash
# The report of a run (scores, figures, explanations, the page) as a job of its own, on one GPU or on a CPU.
#
#   sbatch slurm/explain.sh runs/NAME                                  # a run that is there
#   sbatch --dependency=afterany:$TRAIN slurm/explain.sh runs/NAME     # as soon as job $TRAIN has ended, well or not
#   sbatch --dependency=afterok:$TRAIN --kill-on-invalid-dep=yes slurm/explain.sh runs/NAME      # only if it went well
#   sbatch slurm/explain.sh runs/NAME --only roc occlusion             # whatever `distrib explain` understands
#   sbatch --gpus-per-node=0 slurm/explain.sh runs/NAME                # on a CPU
#
# Say so in the repository, on a file system that all nodes see. Options of sbatch, given before the name of this file,
# win over the lines below.

#SBATCH --job-name=distrib-explain
#SBATCH --output=%x-%j.log         # in the folder where sbatch was called; Slurm makes no folder for it
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-gpu=12          # they decode the images
#SBATCH --mincpus=8                # without a GPU, where they do everything
#SBATCH --gpus-per-node=1          # one GPU is used; some clusters want --gres=gpu:1 instead
#SBATCH --mem=32G
#SBATCH --time=01:00:00            # ask for more where there is no GPU and the test split is large
# Put in your own, and take one # away, where the cluster wants them:
##SBATCH --account=my-account
##SBATCH --partition=my-partition

set -euo pipefail

refuse() {
    printf 'distrib: error: %s\n' "$1" >&2
    exit 2
}

[ $# -gt 0 ] || refuse "slurm/explain.sh needs the folder of a run, such as runs/NAME"
[ -d "$1" ] || refuse "$1 is not a folder in $PWD on $(hostname): submit where the training was submitted"

# Slurm runs a copy of this file, so that the folder of the submission is what is left to go by.
[ ! -x .venv/bin/distrib ] || PATH="$PWD/.venv/bin:$PATH"
export PATH SLURM_EXPORT_ENV=ALL SRUN_EXPORT_ENV=ALL # whatever sbatch --export has left out
command -v distrib >/dev/null ||
    refuse "$PWD has no .venv, and there is no other distrib on $(hostname): submit in the repository"

# A node may be shared: take the cores that the job has, and no more.
[ -z "${SLURM_CPUS_ON_NODE:-}" ] || export OMP_NUM_THREADS="$SLURM_CPUS_ON_NODE"

# A GPU that torch cannot use is said, instead of working on the CPU; what the command line says comes later, and wins.
device=()
[[ ${SLURM_GPUS_ON_NODE:-0} -eq 0 || ${SLURM_GPUS_PER_NODE:-} == 0 ]] || device=(--run.device cuda)

exec distrib explain "$1" "${device[@]}" "${@:2}"
