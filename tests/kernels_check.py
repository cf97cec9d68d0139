#!/usr/bin/env python3
"""No kernel object may define a weak symbol, or a name that another instruction set's object defines too.

The linker keeps one copy of a weak symbol (an inline function, a template) for the whole program. Were it the copy from
a file compiled with AVX-512, the program would crash on a CPU without it.

usage: kernels_check.py NM OBJECT...
"""
import subprocess
import sys


def main() -> int:
    nm, objects = sys.argv[1], sys.argv[2:]
    if not objects:
        print("kernels_check: no object files given", file=sys.stderr)
        return 1
    complaints = []
    owner = {}
    for path in objects:
        command = [nm, "--defined-only", "--format=posix", path]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for line in listing.splitlines():
            name, kind = line.split()[:2]
            if name.startswith(("_ZTI", "_ZTS")):  # names of types, which sanitizers write: data, the same in every object
                continue
            if kind in "VvWwu":
                complaints.append(f"{path}: {name} is weak: make it static or put it in an anonymous namespace")
            elif kind.isupper() and owner.setdefault(name, path) != path:
                complaints.append(f"{path}: {name} is defined in {owner[name]} too")
    print("\n".join(complaints) or f"{len(objects)} kernel objects, {len(owner)} symbols, none of them weak")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
