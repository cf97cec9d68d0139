"""Judges functions that a model wrote: runs in the sandbox (src/eval/code_tests.cc), its task as JSON on stdin, the verdict on stdout.

Two processes. The child, which is made before the task is read, holds the program; the parent holds the tests and the only way to
stdout. Functions of the program are called over a pipe, and of what they give back only plain data comes: numbers, texts, lists and
so on, made anew here, of exactly those types. So nothing that the program defines takes part in a comparison, nothing that it prints
is heard, and its end, however early, is an error. Values that are no plain data stay where they are; the tests hold a number for
them, may call them and use their attributes, and cannot compare them.
"""
import sys

if sys.path and not sys.path[0].startswith("/usr"):
    del sys.path[0]  # the work folder, where the program may put what the tests would import

import ast
import builtins
import collections
import json
import os
import signal
import types

MOST_ITEMS = 100_000  # of an iterator that the program gives back
MOST_BYTES = 64 << 20  # of one answer
MOST_KINDS = 50  # of an error: its type, and what it derives from
MODULES = ("bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "json",
           "math", "operator", "os", "random", "re", "string", "sys", "time", "typing")  # that tests may name without importing them
ERRORS = {}  # that the tests may see: Python's own that a text alone makes, none that ends a loop
for error in vars(builtins).values():
    if isinstance(error, type) and issubclass(error, Exception) and not issubclass(error, (StopIteration, StopAsyncIteration)):
        try:
            error("")
        except TypeError:
            continue
        ERRORS[error.__name__] = error
if hasattr(sys, "set_int_max_str_digits"):  # since Python 3.10.7
    sys.set_int_max_str_digits(0)


# -- Values as JSON: what JSON has as itself, lists as arrays, everything else as an object of one key. ----------------------------

TYPES = {kind.__name__: kind for kind in (bool, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)}
SEQUENCES = {"t": tuple, "s": set, "f": frozenset, "q": collections.deque}


def pack(value, other):
    """other(value): what stands for a value that is no plain data."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is Remote:
        return other(value)
    if isinstance(value, list):
        return [pack(x, other) for x in list.__iter__(value)]
    if isinstance(value, dict):
        return {"d": [[pack(k, other), pack(v, other)] for k, v in dict.items(value)]}
    for key, kind in SEQUENCES.items():
        if isinstance(value, kind):
            return {key: [pack(x, other) for x in kind.__iter__(value)]}
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind.__getnewargs__(value)[0] if kind is not int else int.__add__(value, 0)
    if isinstance(value, (bytes, bytearray)):
        return {"b" if isinstance(value, bytes) else "B": bytes(value).hex()}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if type(value) is type and TYPES.get(value.__name__) is value:
        return {"T": value.__name__}
    if type(value) is range:
        return {"r": [value.start, value.stop, value.step]}
    if type(value).__module__ == "decimal" and type(value).__name__ == "Decimal":
        return {"D": str(value)}
    if type(value).__module__ == "fractions" and type(value).__name__ == "Fraction":
        return {"F": [value.numerator, value.denominator]}
    if hasattr(type(value), "__next__") or type(value) in (type({}.keys()), type({}.values()), type({}.items())):
        items = []
        for x in value:
            items.append(pack(x, other))
            if len(items) > MOST_ITEMS:
                raise ValueError("an iterator of too many items")
        return {"it": items}
    return other(value)


def unpack(value, handle):
    """handle(number): the value that stays in the other process."""
    if type(value) is list:
        return [unpack(x, handle) for x in value]
    if type(value) is not dict:
        return value
    (key, inner), = value.items()
    if key in SEQUENCES:
        return SEQUENCES[key](unpack(x, handle) for x in inner)
    if key == "d":
        return {unpack(k, handle): unpack(v, handle) for k, v in inner}
    if key == "it":
        return iter([unpack(x, handle) for x in inner])
    if key in ("b", "B"):
        return (bytes if key == "b" else bytearray).fromhex(inner)
    if key == "T":
        return TYPES[inner]
    if key == "c":
        return complex(float(inner[0]), float(inner[1]))
    if key == "r":
        return range(*inner)
    if key == "D":
        import decimal
        return decimal.Decimal(inner)
    if key == "F":
        import fractions
        return fractions.Fraction(*inner)
    return handle(inner)


# -- The child: the program. -------------------------------------------------------------------------------------------------------

def serve(requests, answers):
    """Does what the parent asks for, line by line."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    sys.argv = ["solution.py"]
    held = []

    def other(value):
        held.append(value)
        return {"h": len(held) - 1}

    def do(op, *rest):
        if op == "load":
            for source in rest[0]:
                exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)
            return None
        if op == "get":
            return getattr(module, rest[0])
        if op == "method":  # as LeetCode has it
            return getattr(module.Solution() if hasattr(module, "Solution") else module, rest[0])
        arguments = [unpack(x, held.__getitem__) for x in rest]
        if op == "call":
            return arguments[0](*arguments[1], **arguments[2])
        if op == "attribute":
            return getattr(arguments[0], arguments[1])
        return setattr(*arguments)

    for line in requests:
        try:
            op, *rest = json.loads(line)
            value = do(op, *rest)
            # What is called is called here, a type like int too.
            function = op in ("get", "method") and callable(value)
            answer = {"value": other(value) if function else pack(value, other)}
        except BaseException as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]  # the tests may know what it derives from
            answer = {"error": [kinds[:MOST_KINDS], str(error)[:500]]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


# -- The parent: the tests. --------------------------------------------------------------------------------------------------------

class Refused(BaseException):
    """Not an Exception, so that no test catches it."""


class Program:
    def __init__(self):
        to_child, self.requests = os.pipe()
        self.answers, from_child = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            os.close(self.requests)
            os.close(self.answers)
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            serve(os.fdopen(to_child, encoding="utf-8"), os.fdopen(from_child, "w", encoding="utf-8"))
            os._exit(0)
        os.close(to_child)
        os.close(from_child)
        self.rest = b""
        self.calls = 0
        self.refusal = None  # the first; stays, whatever the tests make of it

    def refuse(self, why):
        self.refusal = self.refusal or why
        raise Refused(why)

    def ended(self):
        _, status = os.waitpid(self.child, 0)
        if os.WIFSIGNALED(status):
            import resource
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            caught = used.ru_utime + used.ru_stime >= resource.getrlimit(resource.RLIMIT_CPU)[0]
            if os.WTERMSIG(status) == signal.SIGXCPU or (os.WTERMSIG(status) == signal.SIGKILL and caught):
                self.refuse("timed out")
            self.refuse(f"crashed: signal {os.WTERMSIG(status)}")
        self.refuse(f"crashed: ended with exit code {os.WEXITSTATUS(status)} before it answered")

    def ask(self, op, *rest):
        request = json.dumps([op, *rest]).encode() + b"\n"
        try:
            while request:
                request = request[os.write(self.requests, request):]
        except OSError:
            self.ended()
        answer = [self.rest]
        size = 0
        while b"\n" not in answer[-1]:
            answer.append(os.read(self.answers, 1 << 16))
            size += len(answer[-1])
            if not answer[-1]:
                self.ended()
            if size > MOST_BYTES:
                self.refuse("crashed: an answer of too many bytes")
        line, _, self.rest = b"".join(answer).partition(b"\n")
        try:
            message = json.loads(line)
            if list(message) == ["value"]:
                return unpack(message["value"], lambda number: Remote(self, number))
            (kinds, text), = message.values()
            kinds, text = [str(kind) for kind in kinds[:MOST_KINDS]], str(text)
            name = kinds[0]
        except Exception as error:  # of whatever the program made of this pipe
            self.refuse(f"crashed: no answer that can be read ({type(error).__name__})")
        if "SystemExit" in kinds:
            self.refuse("crashed: exits")
        error = next((ERRORS[kind] for kind in kinds if kind in ERRORS), Exception)
        raise error(text) from Raised(f"{name}: {text}")


class Raised(Exception):
    """What the program raised, as the cause of what the tests see."""


def plain_only(self, *rest):
    object.__getattribute__(self, "_program").refuse("wrong answer: a value that is no plain data")


class Remote:
    """A value of the program that is no plain data."""

    def __init__(self, program, number):
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_packed", {"h": number})

    def __call__(self, *arguments, **named):
        program = object.__getattribute__(self, "_program")
        program.calls += 1
        pack_all = lambda value: pack(value, packed)  # noqa: E731
        return program.ask("call", object.__getattribute__(self, "_packed"), pack_all(list(arguments)), pack_all(named))

    def __getattribute__(self, name):
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        return object.__getattribute__(self, "_program").ask("attribute", packed(self), name)

    def __setattr__(self, name, value):
        object.__getattribute__(self, "_program").ask("set", packed(self), name, pack(value, packed))


for special in ("bool", "eq", "ne", "lt", "le", "gt", "ge", "hash", "len", "iter", "next", "contains", "getitem", "str", "repr", "int",
                "float", "index", "add", "radd", "sub", "rsub", "mul", "rmul", "format", "bytes", "round", "abs", "neg"):
    setattr(Remote, f"__{special}__", plain_only)


def packed(value):
    if type(value) is Remote:
        return object.__getattribute__(value, "_packed")
    raise TypeError(f"tests cannot give a {type(value).__name__} to the program")


def free_names(tree):
    nodes = list(ast.walk(tree))
    bound = {x.id for x in nodes if isinstance(x, ast.Name) and not isinstance(x.ctx, ast.Load)}
    bound |= {x.arg for x in nodes if isinstance(x, ast.arg)}
    bound |= {x.name for x in nodes if isinstance(x, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler))}
    bound |= {(x.asname or x.name).split(".")[0] for x in nodes if isinstance(x, ast.alias)}
    return sorted({x.id for x in nodes if isinstance(x, ast.Name)} - bound)


def run_tests(program, task):
    """Tests as code. Names that neither they nor the given beginning define are the program's."""
    names = {"__name__": "tests"}
    if task["given"]:
        exec(compile(task["given"], "given", "exec", dont_inherit=True), names)
    tree = ast.parse(task["tests"], "tests")
    entry = task["entry_point"]
    for name in free_names(tree):
        if name != entry and (name in names or hasattr(builtins, name)):
            continue
        if name != entry and name in MODULES:
            names[name] = __import__(name)
            continue
        names[name] = program.ask("get", name)
    exec(compile(tree, "tests", "exec", dont_inherit=True), names)
    if program.calls == 0:
        program.refuse("wrong answer: the tests call nothing of the program")


def run_call(program, task):
    """One call, as LiveCodeBench has it."""
    method = program.ask("method", task["entry_point"])
    got = method(*[json.loads(line) for line in task["arguments"].split("\n")])
    expected = json.loads(task["expected"])
    if not (list(got) if type(got) is tuple else got) == expected:
        program.refuse(f"wrong answer: {got!r:.100} for {expected!r:.100}")


def line_of(error, source):
    """The last line of the tests that the error went through."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests":
            line = trace.tb_lineno
        trace = trace.tb_next
    lines = source.split("\n")
    return lines[line - 1].strip() if 0 < line <= len(lines) else ""


def judge(program, task):
    try:
        program.ask("load", task["program"])
    except Exception as error:
        return f"crashed: {error.__cause__ or error}"
    tests = task.get("tests", "")
    try:
        (run_call if "arguments" in task else run_tests)(program, task)
    except AssertionError as error:
        if not isinstance(error.__cause__, Raised):
            return f"wrong answer: {line_of(error, tests)}"
        return f"crashed: {error.__cause__}"
    except Exception as error:
        if isinstance(error.__cause__, Raised):
            return f"crashed: {error.__cause__}"
        return f"wrong answer: {type(error).__name__}: {error} in: {line_of(error, tests)}"
    return program.refusal or "passed"


def main():
    program = Program()  # before there is anything to know
    task = json.loads(sys.stdin.read())
    try:
        verdict = judge(program, task)
    except Refused:
        verdict = program.refusal
    except BaseException as error:
        verdict = f"crashed: {type(error).__name__}"
    sys.stdout.write(json.dumps({"verdict": str(verdict)[:1000]}) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
