#!/usr/bin/env bash
# The true 256×256 recipes for eight minutes each on one GPU, then both measured on the same pairs.
#   bash experiments/results/fomm_256.sh CLIPS OUTPUT [key=value …]
# CLIPS holds train/ and test/. Without a network give the weights of the perceptual loss as a file:
#   loss.perceptual.weights=vgg19.safetensors
set -euo pipefail
clips=${1:?usage: fomm_256.sh CLIPS OUTPUT [key=value …]} output=${2:?usage: fomm_256.sh CLIPS OUTPUT [key=value …]}
shift 2
for recipe in fomm fomm_mcnet; do
  # interrupted, a training writes its checkpoint and exits with 130; timeout itself exits with 124
  timeout --signal=INT "${MINUTES:-8}m" memcomp train "$recipe" "data.root=$clips" --output "$output/$recipe" "$@" ||
    [[ $? == 124 || $? == 130 ]]
  memcomp evaluate "$output/$recipe/checkpoints/last.safetensors" --same --pairs "${PAIRS:-100}" --output "$output/$recipe/evaluation"
done
