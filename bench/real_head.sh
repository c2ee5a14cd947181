#!/usr/bin/env bash
# A real head CT, tilted and unevenly spaced, through the whole way: prepare, a short fine-tune of the release
# checkpoint, generation downward and upward from its middle slice, export.
#
#     bench/real_head.sh SERIES WORK [STEPS]
set -euo pipefail
series=$1 work=$2 steps=${3:-150}
bin=$(dirname "$0")/../.venv/bin
release=$(dirname "$0")/../src/slicewise/release/denoiser.safetensors
mkdir -p "$work"

"$bin/slicewise" info "$series"
"$bin/slicewise" prepare "$series" --out "$work/store" --preset head-128 --split 1 0 0
"$bin/slicewise" train "$work/store" --out "$work/tuned" --preset head-128 --init "$release" \
    --steps "$steps" --warmup 10 --lr 2e-4 --validate-every "$steps"
for direction in down up; do
    "$bin/slicewise" generate --checkpoint "$work/tuned" --out "$work/$direction" --count 1 \
        --seed-volume "$series" --resample-seed --chain.direction "$direction"
    "$bin/slicewise" export "$work/$direction/dicom/volume-0000" --out "$work/$direction.nii.gz"
done
