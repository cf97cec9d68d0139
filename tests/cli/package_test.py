#!/usr/bin/env python3
"""The Debian package that cpack makes: what is in it, and that it runs from where it is unpacked. usage: package_test.py BUILD_FOLDER

Exit code 77 (skipped) where dpkg-deb or cpack is missing."""
import pathlib
import shutil
import subprocess
import sys
import tempfile

BUILD = pathlib.Path(sys.argv[1])
WANTED = ["usr/bin/fathom", "usr/lib/systemd/system/fathom-serve.service", "usr/share/fathom/serve.toml", "usr/share/doc/fathom/README.md",
          "usr/share/doc/fathom/docs/serving.md", "usr/share/doc/fathom/LICENSE"]


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **options)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout


def main():
    if shutil.which("dpkg-deb") is None or shutil.which("cpack") is None:
        print("SKIPPED: there is no dpkg-deb, or no cpack")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        run("cpack", "--config", BUILD / "CPackConfig.cmake", "-G", "DEB", "-B", folder)
        [package] = folder.glob("fathom_*.deb")
        fields = dict(line.split(": ", 1) for line in run("dpkg-deb", "-I", package).replace("\n ", "\n").splitlines() if line.count(": ") and line[0].isupper())
        assert fields["Package"] == "fathom" and "libc6" in fields["Depends"], fields
        root = folder / "root"
        run("dpkg-deb", "-x", package, root)
        missing = [path for path in WANTED if not (root / path).is_file()]
        assert not missing, f"not in the package: {missing}"
        version = run(root / "usr/bin/fathom", "--version")
        assert version.startswith("fathom " + fields["Version"]), version
        # What the service begins is there, and knows the options.
        unit = (root / "usr/lib/systemd/system/fathom-serve.service").read_text()
        assert "ExecStart=/usr/bin/fathom serve --config /etc/fathom/serve.toml" in unit
        run(root / "usr/bin/fathom", "serve", "--config", root / "usr/share/fathom/serve.toml", "--help")
        if shutil.which("systemd-analyze"):
            told = subprocess.run(["systemd-analyze", "verify", str(root / "usr/lib/systemd/system/fathom-serve.service")], capture_output=True, text=True, timeout=60)
            wrong = [line for line in told.stderr.splitlines() if "fathom-serve" in line and "not executable" not in line and "No such file" not in line]
            assert not wrong, wrong
    print("the package is whole and runs")


main()
