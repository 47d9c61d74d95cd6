#!/usr/bin/env bash
# What a machine with a GPU has to tell: `distrib check --gpu` and the benchmarks, one page and one JSON, in under eight
# minutes.
#
#   benchmarks/gpu.sh                          # on faces that it draws
#   benchmarks/gpu.sh --root data/celeba       # on a data set with 2,048 training images or more
#   benchmarks/gpu.sh --out FOLDER             # FOLDER/gpu.md and gpu.json; left out: benchmarks/results
#   benchmarks/gpu.sh --device cpu             # the same lines in small, to try them where there is no GPU
#
# Exit status: 0, or 1 where a part has failed (the page says which, and the others are there), or 2 without a GPU.

set -euo pipefail

refuse() {
    printf 'distrib: error: %s\n' "$1" >&2
    exit 2
}

root='' out='' device=cuda
while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || refuse "benchmarks/gpu.sh takes --root DATA, --out FOLDER and --device cpu, and not $1 alone"
    case $1 in
    --root) root=$(realpath -m -- "$2") ;;
    --out) out=$(realpath -m -- "$2") ;;
    --device) device=$2 ;;
    *) refuse "benchmarks/gpu.sh takes --root DATA, --out FOLDER and --device cpu, and not $1" ;;
    esac
    shift 2
done
case $device in cuda | cpu) ;; *) refuse "--device is $device, and can be cuda or cpu" ;; esac
[ -z "$root" ] || [ -d "$root" ] || refuse "--root $root is no folder"

cd "$(dirname "$0")/.."
out=${out:-$PWD/benchmarks/results}
[ ! -x .venv/bin/python ] || PATH="$PWD/.venv/bin:$PATH"
if [ "$device" = cpu ]; then
    # Threads that wait sleep, as others may need the cores.
    export CUDA_VISIBLE_DEVICES='' OMP_WAIT_POLICY=PASSIVE
elif ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    refuse "torch finds no GPU, and benchmarks/gpu.sh measures one: see README, \"On a GPU\", or say --device cpu to try it"
fi

if ! mkdir -p -- "$out" 2>/dev/null || [ ! -w "$out" ]; then
    refuse "--out $out cannot be written to: name another folder"
fi

# Seconds after which nothing is begun any more; the page takes the rest of eight minutes.
deadline=$((SECONDS + 465))
work=$(mktemp -d)
mkdir "$work/page" "$work/tmp"
export TMPDIR=$work/tmp # what a part that is ended leaves behind goes too
running='' told=''
# What was measured stays where it is until a page tells it.
leave() {
    rm -rf "$work/tmp"
    if [ -n "$told" ]; then
        rm -rf "$work"
    else
        printf 'distrib: error: there is no page: what was measured is in %s\n' "$work" >&2
    fi
}
trap leave EXIT
trap '[ -z "$running" ] || { kill "$running" 2>/dev/null || true; wait "$running" || true; }; exit 130' INT TERM

# NAME LIMIT COMMAND…: run it for so many seconds at most, and write down how it went.
part() {
    local name=$1 limit=$2 left=$((deadline - SECONDS)) began=$SECONDS status=0
    shift 2
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -gt 0 ]; then
        timeout --kill-after=5 "$limit" "$@" >"$work/$name.log" 2>&1 &
        running=$!
        wait "$running" || status=$?
        running=
    else
        status=124 limit=0
    fi
    printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - began))" "$limit" "$*" >>"$work/parts.tsv"
    printf '%-16s %3d s  exit status %d\n' "$name" "$((SECONDS - began))" "$status"
}

# The same of a program that writes what it finds.
benchmark() {
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" python "$@" --json "$work/$name.json"
}

if [ "$device" = cuda ]; then
    faces=3000 batch=256 size='218 178' small='112 112'
    step='--steps 10 --rounds 7' loader='--batches 8 --rounds 3 --threads 8' checkpoint='--steps 50 --rounds 5'
else
    faces=100 batch=16 size='64 64' small='32 32'
    step='--steps 1 --rounds 2' loader='--batches 2 --rounds 1 --threads 1' checkpoint='--steps 2 --rounds 2'
fi

# shellcheck disable=SC2086 # several words each
{
    benchmark check 300 -m distrib check --gpu
    if [ -z "$root" ]; then
        root=$work/faces
        part faces 40 python -m distrib prepare faces --out "$root" --count $faces
    fi
    benchmark step 45 benchmarks/step.py --root "$root" --batch-size $batch --image-size $size $step
    benchmark step-small 30 benchmarks/step.py --root "$root" --batch-size $batch --image-size $small $step
    benchmark loader 60 benchmarks/loader.py --root "$root" --batch-size $batch --no-peers $loader
    benchmark checkpoint 30 benchmarks/checkpoint.py --batch-size $batch --image-size $size $checkpoint
    # It takes what time is left, which may end it (gpu_page.py), and on a CPU it would take as long as all the others.
    [ "$device" = cpu ] || benchmark train 90 benchmarks/train.py --root "$root" --part engine --sizes 178 \
        --forms "by hand" --batch-size $batch --images 2048 --epochs 4 --rounds 1
}

status=0
python benchmarks/gpu_page.py "$work" --out "$work/page" --device "$device" || status=$?
mv "$work/page/gpu.md" "$work/page/gpu.json" "$out"
told=yes
echo "$out/gpu.md and gpu.json"
[ "$status" -eq 0 ]
