#!/usr/bin/env bash
# A training as a job, on one node or many, on GPUs or CPUs. It outlives its time limit, lost nodes and crashes.
#
#   sbatch slurm/train.sh --config configs/celeba.yaml                                  # one GPU
#   sbatch --gpus-per-node=8 slurm/train.sh --config configs/celeba_8gpu.yaml           # a node's eight
#   sbatch --nodes=4 --gpus-per-node=8 slurm/train.sh --config configs/celeba_8gpu.yaml --train.norm-size 64
#   sbatch --nodes=2 --gpus-per-node=0 slurm/train.sh --config configs/celeba.yaml      # CPUs, one rank a node
#   STAGE=/tmp sbatch slurm/train.sh --config configs/celeba.yaml      # the data set is copied to each node's own disk
#
# Say so in the repository, on a file system that all nodes see. Options of sbatch, given before the name of this file,
# win over the lines below; what comes after the name is for distrib/train.py. RANKS_PER_NODE (a GPU each, or 1),
# MAX_RESTARTS (3 crashes) and STAGE are taken from the environment. slurm/README.md says what happens when.
#
# Six lines to adapt to your cluster. Take one # away from 1 and 2 where the cluster wants them, and the # from 6 where
# the compute nodes cannot reach W&B: the runs stay in their folders then, and slurm/wandb_sync.sh uploads them from the
# login node.

##SBATCH --account=my-account      # 1. who pays
##SBATCH --partition=my-partition  # 2. where
#SBATCH --gpus-per-node=1          # 3. a rank each; some clusters want --gres=gpu:1 instead
#SBATCH --cpus-per-gpu=12          # 4. to read and decode, for each rank; fewer where nodes have fewer
#SBATCH --time=24:00:00            # 5. the job is requeued until training has finished; well over ten minutes
#export WANDB_MODE=offline         # 6. the compute nodes have no way out

#SBATCH --job-name=distrib-train
#SBATCH --output=%x-%j.log         # in the folder where sbatch was called
#SBATCH --open-mode=append         # one log, however often the job is requeued
#SBATCH --requeue                  # after a node that fails, too
#SBATCH --signal=B:USR1@180        # three minutes before the limit: enough to save, to leave and to clean up
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1        # one launcher, which starts the ranks of its node
#SBATCH --mincpus=8                # a node's without GPUs, and the least with them
#SBATCH --mem=64G                  # a node's; with eight GPUs more, such as 128G

set -euo pipefail

say() {
    printf 'distrib: %s\n' "$1"
}
refuse() { # SENTENCE [STATUS]
    printf 'distrib: error: %s\n' "$1" >&2
    exit "${2:-2}"
}
whole() { # NAME VALUE LEAST
    [[ $2 =~ ^(0|[1-9][0-9]{0,3})$ && $2 -ge $3 ]] || refuse "$1 is '$2': expected a whole number from $3 on"
}

# Only what runs on a node knows of the GPUs there; the shell of salloc does not.
[[ -n ${SLURM_JOB_ID:-} && -n ${SLURMD_NODENAME:-} ]] ||
    refuse "slurm/train.sh is a job: say sbatch slurm/train.sh --config FILE, or without Slurm distrib train FILE"
[ $# -gt 0 ] || refuse "slurm/train.sh needs a configuration, such as --config configs/celeba.yaml"
[[ $1 == -* ]] || set -- --config "$@"
# Slurm runs a copy of this file, so that the folder of the submission is what is left to go by.
[ -f distrib/train.py ] ||
    refuse "$PWD on $(hostname) has no distrib/train.py: submit in the repository, or say sbatch --chdir=REPOSITORY"
[ ! -x .venv/bin/distrib ] || PATH="$PWD/.venv/bin:$PATH"
# What sbatch --export has left out of this job's environment would be left out of its steps', and with it PATH.
export PATH SLURM_EXPORT_ENV=ALL SRUN_EXPORT_ENV=ALL
for program in srun scontrol squeue; do
    command -v "$program" >/dev/null ||
        refuse "there is no $program in $PATH on $(hostname): submit with Slurm's programs on PATH, and sbatch --export=ALL"
done
for program in distrib accelerate; do
    command -v "$program" >/dev/null ||
        refuse "$PWD has no .venv, and there is no other $program on $(hostname): say make env in $PWD"
done
max_restarts=${MAX_RESTARTS:-3} stage=${STAGE:-}
whole MAX_RESTARTS "$max_restarts" 0
[[ -z $stage || $stage == /* ]] || refuse "STAGE is '$stage': expected a folder of each node's own, such as /tmp"

# --- the shape: nodes, and ranks a node

# The number of an array's last job is the array's own, by which Slurm takes all of it.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
nodes=${SLURM_JOB_NUM_NODES:-1} gpus=${SLURM_GPUS_ON_NODE:-0}
# --exclusive and --gres may give a node other GPUs than --gpus-per-node says, which is all that its steps would get.
asked_for=${SLURM_GPUS_PER_NODE:-}
[ "$asked_for" != 0 ] || gpus=0
[[ $gpus -eq 0 || -z $asked_for || $asked_for == *,* ]] ||
    export SLURM_GPUS_PER_NODE="${asked_for%"${asked_for##*:}"}$gpus" # [TYPE:]NUMBER
per_node=${RANKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}
whole RANKS_PER_NODE "$per_node" 1
ranks=$((nodes * per_node))
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# A node may be shared: take the cores that the job has there, such as 24(x2),32, and no more. A step that goes by GPUs
# cannot start on a node without them.
read -r cpus < <(tr , '\n' <<<"${SLURM_JOB_CPUS_PER_NODE:-1}" | sed 's/(.*//' | sort -n)
export OMP_NUM_THREADS=$((cpus > per_node ? cpus / per_node : 1))
unset SLURM_CPUS_PER_GPU

# Options of distrib/train.py before and after those of the command line; of two that differ the later one wins.
# With GPUs it is cuda and not auto, which would train on the CPU where the driver is too old for torch's CUDA.
before=(--run.device cuda) after=(--run.ranks "$ranks")
[ "$gpus" -gt 0 ] || before=(--run.device cpu)

# --- what Slurm tells this shell: USR1 before the time limit, TERM when the job is cancelled

asked='' folder='' copy='' copying='' step=''
ask() {
    asked=$1
    say "$1 from Slurm: training is to save and to leave"
    if [ -n "$copying" ]; then
        kill "$step" || true
    elif [ -n "$folder" ]; then
        # Dated ahead, because a rank that is still to start takes a file older than itself for a leftover.
        touch --date='5 minutes' "$folder/preempt" || true
    fi
}
trap 'ask USR1' USR1
trap 'ask TERM' TERM

run_step() { # a command once a node, in the background: traps wait for what runs in the foreground
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="$cpus" "$@" &
    step=$!
    while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done # a trap ends a wait, but not the step
    wait "$step"
}

running() { # whether the job is to continue: it is neither cancelled, nor at its limit, nor requeued by Slurm
    local state
    state=$(squeue --noheader --jobs="$job" --format=%T) || return 0 # a controller too busy to say is no end
    [[ -z $state || $state == RUNNING ]]
}

# --- the data set on the nodes' own disks

stage_data() {
    copy=$stage/distrib-$SLURM_JOB_ID
    say "copies $data to $copy on each node"
    copying=yes
    # shellcheck disable=SC2016 # for the shell on the node
    run_step bash -c '
        trap "rm -rf \"\$2\"; exit 1" TERM
        [ ! -e "$2/complete" ] || exit 0
        rm -rf "$2" && mkdir -p "$2" && cp -rL "$1" "$2/data" && touch "$2/complete"' _ "$data" "$copy" ||
        [ -n "$asked" ] || refuse "$data could not be copied to STAGE $stage (see above): choose a folder with room"
    copying=''
    after+=(--data.root "$copy/data")
}

unstage_data() { # where the job was cancelled no step can start any more, and the nodes have seen to it themselves
    [ -z "$copy" ] || ! running || run_step rm -rf "$copy" || say "$copy may be left on a node"
    copy=''
}
trap unstage_data EXIT

# --- one start of the training

check() { # whatever a person has to mend ends the job here, with one sentence and status 2
    local found
    found=$(LOCAL_WORLD_SIZE=$per_node distrib check --here "$@") || exit $?
    data=$(sed -n 's/^data: *//p' <<<"$found")
    folder=$(sed -n 's/^folder: *//p' <<<"$found")
    if [ "$folder" = none ]; then
        folder=runs/slurm-$SLURM_JOB_ID
        after+=(--run.folder "$folder")
    fi
    mkdir -p "$folder" || refuse "run.folder $folder cannot be made on $(hostname): choose another"
}

reach_nodes() { # a step that cannot start is not the ranks' fault, and no restart mends it
    local tries
    for tries in 1 2 3; do # the controller may be busy
        # shellcheck disable=SC2016 # for the shell on the node
        run_step bash -c '
            if [ ! -f distrib/train.py ] || ! command -v accelerate >/dev/null; then
                echo "distrib: $(hostname) sees no distrib/train.py in $1, or has no accelerate"
            elif [ "${SLURM_GPUS_ON_NODE:-$2}" -lt "$2" ]; then
                echo "distrib: $(hostname) gives a step $SLURM_GPUS_ON_NODE of $2 GPUs"
            else
                exit 0
            fi
            exit 1' _ "$PWD" "$gpus" && return 0
        [ -z "$asked" ] || return 0
        [ "$tries" -eq 3 ] || sleep 2
    done
    refuse "no step can start as it should on $SLURM_JOB_NODELIST (see above): submit where all nodes see $PWD and its \
.venv, and ask for GPUs by --gpus-per-node alone"
}

launch() {
    # Rank 0 draws the report when the others have left: --wait=0. TERM also comes when another node has crashed; only
    # at the end of the job does a node remove its copy of the data set by itself. A TERM that came between the trap and
    # a launcher started after it would be lost, and the launcher would wait for the crashed node for ever.
    # shellcheck disable=SC2016 # for the shell on the node
    run_step --kill-on-bad-exit=1 --wait=0 bash -c '
        trap "" USR1
        accelerate launch --machine_rank "$SLURM_NODEID" "${@:3}" &
        trap "ended=yes" TERM
        while kill -0 $! 2>/dev/null; do wait $!; done
        if [ -n "$1" ] && [ -n "${ended:-}" ]; then
            state=$(squeue --noheader --jobs="$2" --format=%T)
            [ -z "$state" ] || [ "$state" = RUNNING ] || rm -rf "$1"
        fi
        wait $!' _ "$copy" "$job" \
        --config_file launch/many_nodes.yaml --num_machines "$nodes" --num_processes "$ranks" \
        --main_process_ip "$head" --main_process_port "$port" --rdzv_backend static \
        --mixed_precision no --dynamo_backend no distrib/train.py "$@"
}

newest() { # the last checkpoint
    local all=("$folder"/checkpoints/step-*)
    [ ! -d "${all[-1]}" ] || echo "${all[-1]}"
}
events() { # that the run has written so far
    cat "$folder/events.jsonl" 2>/dev/null || true
}

leave() { # saved, and not requeued
    say "$1; to resume: sbatch slurm/train.sh … --run.folder $folder --resume auto"
    exit 75
}

requeue() {
    local vain=0
    running || leave "Slurm ends job $SLURM_JOB_ID"
    [ "$(newest)" != "$had" ] || vain=$((had_vain + 1))
    [ "$vain" -lt 3 ] ||
        leave "job $SLURM_JOB_ID has come no step further in three starts in a row, and ends: ask for more --time"
    unstage_data
    say "requeues job $SLURM_JOB_ID"
    trap '' TERM USR1
    [ "$vain" -eq 0 ] || { mkdir -p "$folder" && echo "$vain" >"$folder/$memory"; } || true
    scontrol requeue "$job" || { rm -f "$folder/$memory" && leave "Slurm does not requeue job $SLURM_JOB_ID"; }
    exit 0
}

# --- until training has finished

# What a requeued job remembers, in the run folder: how many starts, up to this one, have come no step further.
memory=.starts-in-vain-$SLURM_JOB_ID
starts=$((${SLURM_RESTART_COUNT:-0} + 1)) crashes=0 had=unknown had_vain=0 reached=''
say "job $SLURM_JOB_ID, start $starts (SLURM_RESTART_COUNT=${SLURM_RESTART_COUNT:-0})"
say "nodes $SLURM_JOB_NODELIST, GPUs a node: $gpus, ranks: $ranks, $per_node a node"

while :; do
    resume=()
    [ $((starts + crashes)) -eq 1 ] || resume=(--resume auto)
    check "${before[@]}" "$@" "${after[@]}" "${resume[@]}"
    [ -n "$reached" ] || [ -n "$asked" ] || reach_nodes
    reached=yes
    [ -z "$stage" ] || [ -n "$copy" ] || [ -n "$asked" ] || stage_data
    if [ "$had" = unknown ]; then
        had=$(newest) had_vain=$(cat "$folder/$memory" 2>/dev/null || echo 0)
        rm -f "$folder/$memory"
    fi
    rm -f "$folder/preempt"
    [ -z "$asked" ] || requeue

    port=$((10000 + (10 * SLURM_JOB_ID + crashes) % 20000))
    seen=$(events | wc -l)
    say "run folder $folder, rendezvous at $head:$port${resume[*]:+, --resume auto}"
    # A checkpoint of its own is what a run resumes from; until there is one, a --resume of the command line stands.
    options=("${before[@]}" "${resume[@]}" "$@" "${after[@]}")
    [ -z "$(newest)" ] || options+=("${resume[@]}")
    launch "${options[@]}" && status=0 || status=$?
    rm -f "$folder/preempt"

    [ "$status" -ne 0 ] || exit 0
    news=$(events | tail -n "+$((seen + 1))")
    [ -z "$asked" ] || requeue
    # The launcher makes 1 of every status of a rank, and srun another one of those of several nodes.
    [[ $news != *'"event": "error"'* ]] || refuse "training has met what a person has to mend (see above)"
    [[ $news != *'"event": "stop"'* ]] || leave "training was stopped and has saved"
    crashes=$((crashes + 1))
    [ "$crashes" -le "$max_restarts" ] || refuse "training crashed (see above), and MAX_RESTARTS is $max_restarts" 1
    say "training crashed: restart $crashes of $max_restarts"
done
