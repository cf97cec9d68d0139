#!/usr/bin/env python3
"""The documents tell the truth about names: every relative link leads to a file, every path of the tree exists, and every function
or type that docs/tour.md names in code style stands in src/. The tour has every equation of the V3 report by its number, and names the
file of an operator beside it."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/*.md")]
TREE = re.compile(r"`((?:src|tests|bench|docs|models|scripts|data)/[\w./-]+)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
NAME = re.compile(r"`(?:\w+::)*(~?[a-z]\w*_\w+|[A-Z]\w+)`")
EQUATION = re.compile(r"^\| (\d+) \|", re.M)
OPERATOR = re.compile(r"^\w+ (\w+)\(Context& ctx", re.M)
IN_FILE = re.compile(r"((?:`\w+`, )*`\w+`) in `(\w+\.(?:cc|h))`")  # "`dispatch`, `combine` in `experts.cc`"


def wrong_in_tour(text):
    ops = ROOT / "src" / "ops"
    operators = {name for header in ops.glob("*.h") for name in OPERATOR.findall(header.read_text()) if not name.startswith("new_")}
    numbers = [int(number) for number in EQUATION.findall(text)]
    wrong = [] if numbers == list(range(1, 26)) else [f"the equations by number are {numbers}, not 1 to 25"]
    for names, file in IN_FILE.findall(text):
        code = (ops / file).read_text() if (ops / file).exists() else ""
        wrong += [f"{name} is not in src/ops/{file}" for name in names.replace("`", "").split(", ") if f"{name}(" not in code]
    for line in IN_FILE.sub("", text).splitlines():
        wrong += [f"no file beside the operator {name}" for name in re.findall(r"`(\w+)`", line) if name in operators]
    return wrong if operators else ["src/ops declares no operators"]


def main():
    wrong = []
    code = "\n".join(p.read_text() for p in (ROOT / "src").rglob("*") if p.suffix in (".h", ".cc"))
    words = set(re.findall(r"\w+", code))
    names = 0
    for document in DOCUMENTS:
        text = document.read_text()
        where = document.relative_to(ROOT)
        wrong += [f"{where}: the link {link} leads nowhere" for link in LINK.findall(text) if not (document.parent / link).exists()]
        wrong += [f"{where}: there is no {path}" for path in TREE.findall(text) if "NAME" not in path and not (ROOT / path).exists()]
        if document.name == "tour.md":
            found = NAME.findall(text)
            names += len(found)
            wrong += [f"{where}: nothing in src/ is called {name}" for name in found if name not in words]
            wrong += [f"{where}: {what}" for what in wrong_in_tour(text)]
    print("\n".join(wrong) or f"{len(DOCUMENTS)} documents, {names} names of the tour: all there")
    return 1 if wrong or names == 0 else 0


sys.exit(main())
