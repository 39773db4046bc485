#!/usr/bin/env bash
# Every recipe at 256 px on one GPU: attach parity, bf16 and fp16, torch.compile, 20 training steps with time and memory.
#   bash experiments/results/hosts.sh OUTPUT [key=value …]
# Without a network the perceptual loss needs its weights as a file (loss.perceptual.weights=FILE) or none: loss.perceptual=null
set -euo pipefail
output=${1:?usage: hosts.sh OUTPUT [key=value …]}
shift
memcomp speed hosts --size 256 --steps 20 --output "$output" "$@"
