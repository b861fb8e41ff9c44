#!/bin/sh
# The shipped weights of `small`, from the scans that models/manifest.json names to models/model.pt and its card:
#
#     sh scripts/reproduce_weights.sh CT RUNS
#
# About ten hours of one CPU core with bfloat16, and some 20 GB of disk. The denoiser comes from the trainings of version
# 0.1.0, each with the code of its own commit, so that this needs a clone with its history. Stopped, it goes on where it was.
set -eu
scans=$(cd "$1" && pwd)
mkdir -p "$2"
runs=$(cd "$2" && pwd)

at() { # COMMIT COMMAND...: with the code of that commit
    code="$runs/code/$1"
    if [ ! -d "$code" ]; then
        mkdir -p "$code.part"
        git archive "$1" | tar -x -C "$code.part"
        mv "$code.part" "$code"
    fi
    shift
    (cd "$code" && PYTHONPATH="$code" "$@")
}

train_former() { # COMMIT NAME OPTIONS...
    commit=$1
    name=$2
    shift 2
    [ -f "$runs/$name/model.pt" ] || at "$commit" python -m monai.bundle run training \
        --dataset_dir "$scans" --output_dir "$runs/$name" --gaps resample --threads 1 \
        --validation_folders "['rider_pilot_0117','crlm_1004','covidctmd_cap002','ge_head_tilt']" "$@"
}

train() {
    python -m monai.bundle run training --dataset_dir "$scans" --gaps resample --threads 1 \
        --config_file "['configs/train.yaml','configs/quick.yaml','configs/held_out.yaml']" \
        "--training_data#cache_dir" "$runs/cache" --val_interval 3 --denoiser_steps 0 --batch_size 4 "$@"
}

python scripts/manifest.py --dataset_dir "$scans"

# Version 0.1.0: 14,500, 16,000, 6,000 and 7,500 steps.
train_former fc5a682 former_1 --config_file configs/train.yaml --patch_size 64 --num_slices 6 --learning_rate 3.0e-4 \
    --steps_per_epoch 500 --val_interval 4 --autoencoder_epochs 1 --phase1_epochs 10 --num_epochs 28
train_former 7335d40 former_2 --config_file configs/train.yaml --patch_size 64 --num_slices 6 --learning_rate 3.0e-4 \
    --steps_per_epoch 500 --val_interval 4 --autoencoder_epochs 0 --phase1_epochs 4 --num_epochs 32 \
    --weights_file "$runs/former_1/model.pt"
train_former aaba83b former_3 --config_file "['configs/train.yaml','configs/polish.yaml']" --patch_size 64 --num_slices 6 \
    --steps_per_epoch 500 --val_interval 2 --weights_file "$runs/former_2/model.pt"
at e7de06d python scripts/widen_refiner.py "$runs/former_3/model.pt" "$runs/wider.pt"
train_former e7de06d former_4 --config_file "['configs/train.yaml','configs/quick.yaml']" --learning_rate 2.0e-4 --val_interval 2 \
    --denoiser_steps 0 --refiner_steps 4000 --joint_steps 3500 --weights_file "$runs/wider.pt"

# Its refiner and autoencoder were others than this version's; what stays is the denoiser.
python - "$runs" <<'PYTHON'
import sys
import torch

former = torch.load(f"{sys.argv[1]}/former_4/model.pt", weights_only=True)
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
