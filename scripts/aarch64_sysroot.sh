#!/usr/bin/env bash
# Unpacks Debian's arm64 libraries into a folder, for the preset `aarch64` (see cmake/aarch64.cmake). Touches nothing else and
# needs no root; the cross compiler and the emulator come from: apt-get install g++-aarch64-linux-gnu qemu-user-static
#   scripts/aarch64_sysroot.sh [DIR]    (default build/aarch64-sysroot)
set -euo pipefail
cd "$(dirname "$0")/.."
sysroot=${1:-build/aarch64-sysroot}

# What fathom is built with, and what its programs load when they run under the emulator.
packages=(libfmt-dev libfmt9 libsimdjson-dev libsimdjson14 libpcre2-dev libpcre2-8-0 libseccomp-dev libseccomp2 libutf8proc-dev libutf8proc2
  libtomlplusplus-dev libxxhash-dev libxxhash0 zlib1g-dev zlib1g libzstd-dev libzstd1 nlohmann-json3-dev libcli11-dev libboost1.81-dev libssl-dev libssl3
  libgtest-dev libgmock-dev libc6 libstdc++6 libgcc-s1)

if [ "$(cat "$sysroot/packages" 2>/dev/null)" = "${packages[*]}" ]; then
  echo "aarch64 sysroot: all ${#packages[@]} packages are in $sysroot"
  exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch"/{lists,archives}/partial "$scratch/debs"
apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$scratch" -o Dir::Cache="$scratch"
  -o Dir::State::status=/dev/null -o APT::Sandbox::User=)
"${apt[@]}" update
(cd "$scratch/debs" && "${apt[@]}" download "${packages[@]}")
mkdir -p "$sysroot"
for package in "$scratch"/debs/*.deb; do dpkg -x "$package" "$sysroot"; done
echo "${packages[*]}" >"$sysroot/packages"
echo "aarch64 sysroot: ${#packages[@]} packages in $sysroot"
