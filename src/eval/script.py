"""Runs a program that a model wrote as a script, in the sandbox (src/eval/code_tests.cc): given.py first, in the same names, then
solution.py. A program that exits by itself, whatever its code, has done its work; what it printed says how well."""
import sys

names = {"__name__": "__main__", "__builtins__": __builtins__}
for part in ("given.py", "solution.py"):
    with open(part, encoding="utf-8") as file:
        code = compile(file.read(), part, "exec", dont_inherit=True)
    sys.argv = [part]
    try:
        exec(code, names)
    except SystemExit:
        break
