#!/usr/bin/env bash
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
#
# All that is to be asked of an accelerator, in 10 minutes of it, on a machine without a network that has PyTorch:
#
#     bash benchmarks/accelerator.sh pack FASHION MNIST   # where there is one: wheels and two folders of IDX files into .accelerator/
#     bash benchmarks/accelerator.sh run OUTPUT           # there, with .accelerator/ in the repository's root
#
# `run` checks and times steps (bench_accelerator.py), then compares SupMAE, supervised only and MAE on 60,000 images
# (pretraining.py --only large). It goes on where it was interrupted. Without an accelerator it takes the CPU. MINUTES=0.5 is a trial.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
MINUTES=${MINUTES:-2}  # of each of the two, without what they measure then

case "${1:-}" in
pack)
  mkdir .accelerator
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" \
    --platform manylinux_2_28_x86_64 --dest .accelerator/wheels --constraint constraints/tested.txt \
    transformers datasets evaluate requests dill multiprocess imagecorruptions-imaug
  cp -r "$2" .accelerator/data
  cp -r "$3" .accelerator/transfer
  find .accelerator -name "*ubyte" -exec gzip {} +
  du -sh .accelerator
  ;;
run)
  "$PYTHON" -m pip install --quiet --no-index --no-deps --target .accelerator/site --upgrade .accelerator/wheels/*.whl
  export PYTHONPATH=$PWD/.accelerator/site:$PWD/src
  device=$("$PYTHON" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
  status=0
  if ! compgen -G "$2/accelerator_data_*" >/dev/null; then
    "$PYTHON" benchmarks/bench_accelerator.py --minutes "$MINUTES" || status=$?
    mkdir -p "$2"
    cp benchmarks/results/accelerator_* "$2"
  fi
  "$PYTHON" experiments/pretraining.py --only large --device "$device" --seeds 1 --corrupted 500 --minutes "$MINUTES" \
    --data .accelerator/data --transfer .accelerator/transfer --output_dir "$2/pretraining"
  exit "$status"
  ;;
*)
  echo "bash benchmarks/accelerator.sh pack FASHION MNIST, or bash benchmarks/accelerator.sh run OUTPUT" >&2
  exit 2
  ;;
esac
