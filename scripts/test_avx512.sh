#!/usr/bin/env bash
# Runs test programs on an emulated CPU with AVX-512 and its VNNI, for machines without one: Bochs boots Debian's kernel with
# nothing but the programs in its memory. Some twenty million instructions a second: ops_test takes about half an hour.
#   apt-get install bochs bochs-term bochsbios vgabios xorriso cpio
#   scripts/test_avx512.sh [PROGRAM...]    (default build/release/tests/ops_test; GTEST_FILTER is passed on)
set -euo pipefail
cd "$(dirname "$0")/.."
programs=("${@:-build/release/tests/ops_test}")
work=$PWD/build/avx512
rm -rf "$work/initrd" "$work/serial.txt"
mkdir -p "$work"/{debs,packages,initrd/{proc,dev,tmp,lib64},iso/isolinux}

if [ ! -e "$work/packages/bin/busybox" ]; then
  kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
  (cd "$work/debs" && apt-get -qq -o APT::Sandbox::User= download "$kernel" busybox-static isolinux syslinux-common)
  for package in "$work"/debs/*.deb; do dpkg -x "$package" "$work/packages"; done
fi

# The first file system: the programs, the libraries that they load, the data of their tests, and a script that runs them all.
root=$work/initrd
install -D "$work/packages/bin/busybox" "$root/bin/busybox"
for program in "${programs[@]}"; do
  cp "$program" "$root/"
  ldd "$program" | grep -o '/[^ ]*' | while read -r library; do install -D "$library" "$root$library"; done
done
mkdir -p "$root$PWD/tests/data" && cp -r tests/data/ops "$root$PWD/tests/data/"
{
  printf '#!/bin/busybox sh\nalias bb=/bin/busybox\nbb mount -t proc proc /proc\nbb mount -t devtmpfs dev /dev\n'
  printf 'bb grep -m1 -o "avx512_vnni" /proc/cpuinfo\nexport GTEST_FILTER="%s"\n' "${GTEST_FILTER:-*}"
  for program in "${programs[@]}"; do printf '/%s; echo "exit $?"\n' "$(basename "$program")"; done
  printf 'echo end\nbb sleep 2\nbb poweroff -f\n'
} >"$root/init"
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/iso/initrd.gz"

# Bochs 2.7 and the kernel disagree about compacted XSAVE areas; without them the kernel takes AVX-512 as it is.
cp "$work"/packages/boot/vmlinuz-* "$work/iso/vmlinuz"
cp "$work"/packages/usr/lib/ISOLINUX/isolinux.bin "$work"/packages/usr/lib/syslinux/modules/bios/ldlinux.c32 "$work/iso/isolinux/"
cat >"$work/iso/isolinux/isolinux.cfg" <<'CFG'
DEFAULT fathom
LABEL fathom
  KERNEL /vmlinuz
  INITRD /initrd.gz
  APPEND console=ttyS0,115200 quiet mitigations=off tsc=reliable clearcpuid=xsavec,xsaves
CFG
xorriso -as mkisofs -quiet -o "$work/boot.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 \
  -boot-info-table "$work/iso" 2>/dev/null

cat >"$work/bochsrc" <<CFG
cpu: model=tigerlake, count=1, ips=40000000
megs: 2048
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path="$work/boot.iso", status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev="$work/serial.txt"
display_library: term
clock: sync=none
log: "$work/bochs.log"
CFG
echo c >"$work/commands" # Debian's Bochs has the debugger: go on
TERM=xterm bochs -q -f "$work/bochsrc" -rc "$work/commands" </dev/null >"$work/out.txt" 2>&1 &
bochs=$!
trap 'kill $bochs $(jobs -p) 2>/dev/null || true' EXIT
# Its screen is a pseudo terminal that somebody has to read.
sleep 5
cat "/dev/pts/$(awk '/tty-index/ { print $2 }' /proc/$bochs/fdinfo/*)" >/dev/null 2>&1 &
wait $bochs || true
cat "$work/serial.txt"
! grep -q '^exit [^0]' "$work/serial.txt" && grep -q '^end' "$work/serial.txt"
