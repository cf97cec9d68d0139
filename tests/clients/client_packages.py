"""The tests of this folder run in a Python that has the client packages: the one that FATHOM_CLIENTS names, or build/clients where
scripts/install_clients.sh has made it. What they share with the other tests of the program is found from here."""
import importlib
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/cli"))


def need_browser():
    """The same for what drives a browser, and Debian's chromium."""
    need("playwright")
    if not pathlib.Path("/usr/bin/chromium").exists():
        print("skipped: there is no /usr/bin/chromium (Debian's package chromium)")
        sys.exit(77)


def need(*packages):
    """Starts the script again in that Python, once; exits 77, "skipped", where a package is missing there too."""
    other = os.environ.get("FATHOM_CLIENTS") or str(ROOT / "build/clients/bin/python")
    if "FATHOM_CLIENTS_CHOSEN" not in os.environ and pathlib.Path(other).exists():
        os.environ["FATHOM_CLIENTS_CHOSEN"] = "1"
        os.execv(other, [other, *sys.argv])
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as missing:
            print(f"skipped: {missing}; scripts/install_clients.sh installs it, FATHOM_CLIENTS names a Python that has it")
            sys.exit(77)
