"""Checks that includes in src/ point the way CONTRIBUTING.md says, that files stay short, and that no path of one machine is in them."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAX_LINES = 800
ROOMS = {
    "base": set(),
    "number": {"base"},
    "ops": {"base", "number"},
    "text": {"base"},
    "model": {"base", "number", "ops"},
    "checkpoint": {"base", "number", "ops", "model"},
    "parallel": {"base", "number", "ops", "model"},
    "train": {"base", "number", "ops", "model", "parallel", "checkpoint", "text"},
    "infer": {"base", "number", "ops", "model", "checkpoint", "text"},
    "serve": {"base", "number", "ops", "model", "checkpoint", "text", "parallel", "infer"},
    "eval": {"base", "number", "ops", "model", "checkpoint", "text", "parallel", "infer", "serve"},
    "tune": {"base", "number", "ops", "model", "checkpoint", "text", "parallel", "train", "infer", "serve", "eval"},
    "plan": {"base", "number", "ops", "model", "checkpoint"},
    "cli": {"base", "number", "ops", "model", "checkpoint", "text", "parallel", "train", "infer", "serve", "eval", "tune", "plan"},
}
# Of the model, files on disk know what is stored and nothing of how it is computed.
CHECKPOINT_SEES = {"model/config.h", "model/weights.h"}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')
ABSOLUTE_PATH = re.compile(r'(?<![\w.:/-])/(?:(?:work|root|tmp|home|opt|mnt)/\w|usr/(?!(?:local/)?bin\b)\w)')


def room_of(path):
    return path.split("/")[0]


def problems_of(path):
    name = path.relative_to(ROOT / "src").as_posix()
    room = room_of(name)
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) > MAX_LINES:
        yield f"{name}: {len(lines)} lines, more than {MAX_LINES}"
    if room not in ROOMS:
        yield f"{name}: the folder is no room of CONTRIBUTING.md"
        return
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        if ABSOLUTE_PATH.search(line):
            yield f"{where}: an absolute path: {line.strip()}"
        include = INCLUDE.match(line)
        if include is None:
            continue
        target = include.group(1)
        if not (ROOT / "src" / target).is_file():
            yield f"{where}: {target} is no file of src/ (our own are included by their path from there)"
        elif room_of(target) != room and room_of(target) not in ROOMS[room]:
            yield f"{where}: {room} must not include {target}"
        elif room == "checkpoint" and room_of(target) == "model" and target not in CHECKPOINT_SEES:
            yield f"{where}: checkpoint must not include {target}"


def main():
    files = sorted(p for p in (ROOT / "src").rglob("*") if p.suffix in (".h", ".cc", ".cu"))
    problems = [problem for path in files for problem in problems_of(path)]
    for problem in problems:
        print(problem)
    print(f"{len(files)} files, {len(problems)} problems")
    return 1 if problems or not files else 0


if __name__ == "__main__":
    sys.exit(main())
