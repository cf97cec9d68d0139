"""Tests that need Python packages run in the Python that FATHOM_PYTHON names, where it names one."""
import os
import sys


def switch():
    """Starts the script again in that Python, once."""
    other = os.environ.get("FATHOM_PYTHON")
    if other and "FATHOM_PYTHON_CHOSEN" not in os.environ:
        os.environ["FATHOM_PYTHON_CHOSEN"] = "1"
        os.execv(other, [other, *sys.argv])


def skip(missing, packages):
    print(f"skipped: {missing}; set FATHOM_PYTHON to a Python with {packages}")
    sys.exit(77)
