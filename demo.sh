#!/usr/bin/env bash
# From a bare machine to a trained model: installs what is missing, builds, trains a small DeepSeek-V3 (latent attention, 16 routed
# experts and a shared one, loss-free balancing, multi-token prediction) on Shakespeare, first on short sequences, then on long ones,
# scores held-out text and writes some.
#   STEPS=N (2 or more) changes the length of the training, OUT=DIR where it goes.
set -euo pipefail
cd "$(dirname "$0")"
out=${OUT:-out/demo}
steps=${STEPS:-2000}
say() { printf '\n== %s\n' "$*"; }

say "Packages"
scripts/install_packages.sh

say "Build"
cmake --preset release -DFATHOM_TESTS=OFF >/dev/null
cmake --build --preset release -j "$(nproc)" --target fathom | tail -n 1
fathom=build/release/src/fathom

say "Train ($steps steps; a checkpoint in $out, progress below; $fathom watch $out draws it live)"
[ -n "${OUT:-}" ] || rm -rf "$out"  # a directory of the user's own is never removed
"$fathom" train --model-config models/shakespeare.config.json --tokenizer bytes --out "$out" \
  --data data/tinyshakespeare-train.txt --val-data data/tinyshakespeare-val.txt --val-every 500 \
  --steps "$steps" --seq-len 128 --batch-size 8 --extend-seq-len 512 --extend-at $((steps * 5 / 7)) \
  --lr 4e-3 --min-lr 0 --warmup 60 --schedule wsd --decay-fraction 0.28 \
  --mtp-weight 1 --beta2 0.98 --weight-decay 0.1 --bias-update-speed 0.02 --sample-every 500 --prompt "ROMEO:" --seed 1

say "Held-out loss (nats a character)"
"$fathom" score --model "$out" --text data/tinyshakespeare-val.txt --window 512

say "Text"
printf 'ROMEO:'
"$fathom" generate --model "$out" --prompt "ROMEO:" --max-tokens 400 --temperature 0.8 --seed 1 --quiet

say "Next"
cat <<TEXT
  $fathom generate --model $out --prompt "JULIET:" --max-tokens 500 --temperature 0.8
  $fathom serve --model $out      # then http://127.0.0.1:8080/ is a page to chat on
  $fathom inspect $out
  $fathom watch $out              # then http://127.0.0.1:8090/ draws the run: losses, balance, biases, expert loads, samples
  $out/report.html shows it too, in one file
TEXT
