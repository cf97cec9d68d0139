#!/usr/bin/env python3
"""The documents tell the truth about names: every relative link leads to a file, every path of the tree exists, and every function
or type that docs/tour.md names in code style stands in src/."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/*.md")]
TREE = re.compile(r"`((?:src|tests|bench|docs|models|scripts|data)/[\w./-]+)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
NAME = re.compile(r"`(?:\w+::)*(~?[a-z]\w*_\w+|[A-Z]\w+)`")


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
    print("\n".join(wrong) or f"{len(DOCUMENTS)} documents, {names} names of the tour: all there")
    return 1 if wrong or names == 0 else 0


sys.exit(main())
