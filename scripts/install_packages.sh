#!/usr/bin/env bash
# Installs the Debian packages that building and testing need, and those named as arguments; those that are missing only. Needs
# no network when all are there.
set -euo pipefail

packages=(g++ cmake ninja-build ccache pkg-config git python3 python3-jinja2
  libfmt-dev libsimdjson-dev nlohmann-json3-dev libcli11-dev libpcre2-dev libxxhash-dev zlib1g-dev libzstd-dev libboost1.81-dev
  libssl-dev libjs-marked libjs-katex fonts-katex node-prismjs bubblewrap libseccomp-dev libutf8proc-dev libtomlplusplus-dev libgtest-dev libgmock-dev "$@")

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
  [ "$status" = "install ok installed" ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "packages: all ${#packages[@]} are installed"
  exit 0
fi
echo "packages: installing ${missing[*]}"
run=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "packages: run this as root, or install sudo, or install by hand: ${missing[*]}" >&2; exit 1; }
  run=(sudo)
fi
"${run[@]}" apt-get update -qq
"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
