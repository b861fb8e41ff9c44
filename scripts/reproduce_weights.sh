#!/bin/sh
# The shipped weights of `small`, from the scans that models/manifest.json names to models/model.pt and its card:
#
#     sh scripts/reproduce_weights.sh CT RUNS
#
# About four hours of one CPU core with bfloat16, after the denoiser of version 0.1.0, which it takes out of this repository's history
# (six hours; its recipe is models/README.md of commit e7de06d), so that it needs a clone with its history. Stopped, it goes on where it was.
set -eu
scans=$1
runs=$2

train() {
    python -m monai.bundle run training --dataset_dir "$scans" --gaps resample --threads 1 \
        --config_file "['configs/train.yaml','configs/quick.yaml','configs/held_out.yaml']" \
        "--training_data#cache_dir" "$runs/cache" --val_interval 3 --denoiser_steps 0 --batch_size 4 "$@"
}

python scripts/manifest.py --dataset_dir "$scans"
mkdir -p "$runs"
git show e7de06d:models/model.pt > "$runs/former.pt"
# Its refiner and autoencoder were others than this version's; what stays is the denoiser.
python - "$runs" <<'PYTHON'
import sys
import torch

former = torch.load(f"{sys.argv[1]}/former.pt", weights_only=True)
kept = {name: tensor for name, tensor in former.items() if not name.startswith(("refiner.", "autoencoder.net."))}
torch.save({n: t.float() if t.is_floating_point() else t for n, t in kept.items()}, f"{sys.argv[1]}/start.pt")
PYTHON
train --output_dir "$runs/first" --weights_file "$runs/start.pt" --refiner_steps 3000 --joint_steps 6500 \
    --pixel_size_probability 0 --smooth_kernel_probability 0 --told_spacing_factor 1 --told_noise_factor 1
python scripts/pack_weights.py "$runs/first/model.pt" "$runs/first.pt"
train --output_dir "$runs/second" --weights_file "$runs/first.pt" --refiner_steps 0 --joint_steps 7000 \
    --learning_rate 2.0e-4 --told_spacing_factor 1 --told_noise_factor 1
python scripts/pack_weights.py "$runs/second/model.pt" "$runs/second.pt"
train --output_dir "$runs/third" --weights_file "$runs/second.pt" --refiner_steps 0 --joint_steps 9000 \
    --learning_rate 2.0e-4
python scripts/pack_weights.py "$runs/third/model.pt" models/model.pt
python scripts/describe_weights.py --dataset_dir "$scans" --gaps resample --outside_domain ge_head_tilt \
    --validation_folders rider_pilot_0117 crlm_1004 covidctmd_cap002 ge_head_tilt
