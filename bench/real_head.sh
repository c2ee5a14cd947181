#!/usr/bin/env bash
# A real head CT, tilted and unevenly spaced, through the whole way: prepare, a short fine-tune of both levels of the
# release checkpoint, generation downward, upward and both ways from its middle slice, export.
#
#     bench/real_head.sh SERIES WORK [STEPS]
set -euo pipefail
series=$1 work=$2 steps=${3:-100}
bin=$(dirname "$0")/../.venv/bin
release=$("$bin/python" -c "from slicewise.release import CHECKPOINT; print(CHECKPOINT)")
mkdir -p "$work"

"$bin/slicewise" info "$series"
"$bin/slicewise" prepare "$series" --out "$work/store" --preset head-128 --split 1 0 0
for level in plan-32 draw-128; do
    "$bin/slicewise" train "$work/store" --out "$work/$level" --preset "$level" --init "$release" \
        --steps "$steps" --lr 1e-4 --validations 1 --ema 0.1
done
"$bin/slicewise" pyramid "$work/plan-32" "$work/draw-128" --out "$work/tuned.safetensors"
for direction in down up both; do
    "$bin/slicewise" generate --checkpoint "$work/tuned.safetensors" --out "$work/$direction" --count 1 --no-report \
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
for direction in ("down", "up", "both"):
    dicom, nifti = read_series(work / direction / "dicom" / "volume-0000"), read_nifti(work / f"{direction}.nii.gz")
    (at,) = dicom.acquisition.real_slices
    off = int(np.abs(dicom.hu[at] - prepared[len(prepared) // 2].astype(int)).max())
    same = np.array_equal(dicom.hu, nifti.hu)
    print(f"{direction}: {len(dicom.hu)} slices; seed slice ({at}) off by {off} HU at most; DICOM and NIfTI equal: {same}")
PYTHON
find "$work"/{down,up,both}/dicom -type f | while read -r file; do
    dciodvfy "$file" 2>&1 | grep '^Error' || true
done | sort | uniq -c
