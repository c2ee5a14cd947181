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
    --steps "$steps" --lr 2e-4 --validations 1
for direction in down up; do
    "$bin/slicewise" generate --checkpoint "$work/tuned" --out "$work/$direction" --count 1 \
        --seed-volume "$series" --resample-seed --keep-seed --chain.direction "$direction"
    "$bin/slicewise" export "$work/$direction/dicom/volume-0000" --out "$work/$direction.nii.gz"
done

# What came out: the seed slice's HU as prepared, DICOM against NIfTI, and what dciodvfy calls an error.
"$bin/python" - "$work" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np

from slicewise.data.store import open_store
from slicewise.io.dicom import read_series
from slicewise.io.nifti import read_nifti

work = Path(sys.argv[1])
store = open_store(work / "store")
prepared = store.volume(store.records[0]).hu
for direction, end in (("down", 0), ("up", -1)):
    dicom, nifti = read_series(work / direction / "dicom" / "volume-0000"), read_nifti(work / f"{direction}.nii.gz")
    seed = int(np.abs(dicom.hu[end] - prepared[len(prepared) // 2].astype(int)).max())
    same = np.array_equal(dicom.hu, nifti.hu)
    print(f"{direction}: {len(dicom.hu)} slices; seed slice off by {seed} HU at most; DICOM and NIfTI equal: {same}")
PYTHON
find "$work/down/dicom" "$work/up/dicom" -type f | while read -r file; do
    dciodvfy "$file" 2>&1 | grep '^Error' || true
done | sort | uniq -c
