#!/usr/bin/env bash
# Uploads to Weights & Biases what trainings have kept in their run folders, for nodes that have no way out.
#
#   slurm/wandb_sync.sh                        # all runs in runs/
#   slurm/wandb_sync.sh runs/NAME …            # these
#   slurm/wandb_sync.sh --dry-run runs/NAME    # say what would go
#
# Say so on the login node, or on any machine that sees the runs and can reach W&B; `wandb login` comes first. What has
# been uploaded is not uploaded again unless it has grown since, and the parts of a run that was requeued are one run.
# Parts that were online are among them where the server has not taken all; W&B itself uploads those of a run under way.

set -euo pipefail

refuse() {
    printf 'distrib: error: %s\n' "$1" >&2
    exit 2
}

options=()
while [[ ${1:-} == -* ]]; do
    [ "$1" = --dry-run ] || refuse "slurm/wandb_sync.sh does not know $1: expected --dry-run, or folders of runs"
    options+=("$1")
    shift
done
[ ! -x .venv/bin/wandb ] || PATH="$PWD/.venv/bin:$PATH"
command -v wandb >/dev/null ||
    refuse "$PWD has no .venv, and there is no other wandb on $(hostname): say make env in the repository"

shopt -s nullglob
[ $# -gt 0 ] || set -- runs/*/
parts=()
for run in "$@"; do
    [ -d "$run" ] || refuse "$run is not a folder in $PWD on $(hostname): expected the folder of a run, such as runs/NAME"
    online=("${run%/}"/wandb/run-*/)
    lock=${run%/}/run.lock
    [ ! -e "$lock" ] || flock --shared --nonblock "$lock" true || online=()
    for part in "${run%/}"/wandb/offline-run-*/ "${online[@]}"; do
        for log in "$part"*.wandb; do
            # wandb leaves its mark on a run that is still under way, too.
            [ ! "$log" -nt "$log.synced" ] || parts+=("${part%/}")
        done
    done
done

if [ ${#parts[@]} -eq 0 ]; then
    echo "distrib: nothing to upload: W&B's server has all, or a run under way still uploads it, in ${*:-$PWD/runs}"
    exit 0
fi
exec wandb sync --include-online --include-synced "${options[@]}" "${parts[@]}"
