#!/usr/bin/env python3
"""Random templates and what Jinja2 makes of them, one JSON object a line: template, variables, and text or error.

usage: jinja_differential.py SEED COUNT. Exits with 77 when the Python package jinja2 is missing.
"""

import json
import random
import resource
import signal
import sys

try:
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment
except ImportError:
    sys.exit(77)

VARIABLES = {
    "s": "Hello, World", "t": "  spaced out\ttext\n", "u": "naïve Ünïcödé 数据 ßtraße", "e": "", "q": "it's \"q\" \\ \x07\u200b",
    "i": 7, "n": -3, "z": 0, "f": 2.5, "g": -1e-7, "h": 1e22, "b": True, "c": False, "nil": None,
    "l": [3, 1, 2], "ls": ["b", "A", "c", "a"], "lm": [1, "x", None, 2.5, [1]], "le": [],
    "d": {"a": 1, "b": "two", "items": 3, "B": None}, "de": {},
    "ld": [{"name": "x", "age": 3, "ok": True}, {"name": "Y", "age": 1, "ok": False}, {"name": "z", "age": 2, "ok": True}],
    "nested": {"k": [{"v": [1, {"w": "deep"}]}], "m": {"n": {"o": "p"}}},
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b>&"},
                 {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.0, "y": "é"}}}]}],
}


class Maker:
    def __init__(self, seed):
        self.r = random.Random(seed)

    def pick(self, *options):
        return self.r.choice(options)

    def text_literal(self):
        return self.pick("'a'", '"b c"', "'é'", "''", "'x\\ny'", "'%s'", "'{}'", "'A,b,,C'", "'ab' 'cd'", "'\\t\\x41\\u00e9'", "'12'", "' 3.5 '", "'o'", "'l'")

    def text(self, d):
        if d <= 0:
            return self.pick("s", "t", "u", "e", "q", self.text_literal(), "messages[0].role", "d.b", "ld[0]['name']")
        e = lambda: self.expr(d - 1)
        x = lambda: self.text(d - 1)
        k = lambda: self.int(d - 2)
        return self.r.choice([
            lambda: f"({x()} ~ {e()})", lambda: f"({x()} + {x()})", lambda: f"({x()} * {self.pick(0, 1, 2, 3)})",
            lambda: f"{x()}.{self.pick('upper', 'lower', 'strip', 'title', 'capitalize', 'lstrip', 'rstrip', 'swapcase')}()",
            lambda: f"{x()}.{self.pick('strip', 'lstrip', 'rstrip')}({x()})",
            lambda: f"{x()}.replace({x()}, {x()}{self.pick('', ', 1', ', 0')})",
            lambda: f"({x()}|{self.pick('upper', 'lower', 'trim', 'title', 'capitalize', 'string', 'reverse', 'urlencode')})",
            lambda: f"({e()}|{self.pick('string', 'tojson', 'tojson(indent=2)', 'upper', 'trim', 'tojson(ensure_ascii=true)', 'tojson(sort_keys=true)')})",
            lambda: f"({x()}|replace({x()}, {x()}))", lambda: f"({x()}|indent({self.pick('2', '4, true', '1, blank=true', 'width=3', repr('>>'))}))",
            lambda: f"({self.list(d - 1)}|join({x()}))", lambda: f"{x()}.join({self.list(d - 1)})",
            lambda: f"{x()}[{k()}]", lambda: f"{x()}[{self.slice(d)}]",
            lambda: f"('{self.percent()}' % ({e()}))", lambda: f"('{self.percent()}'|format({e()}))",
            lambda: f"('%s-%d|%5.2f' % ({x()}, {self.int(d - 1)}, {self.num(d - 1)}))",
            lambda: f"'{self.brace()}'.format({e()}, {e()})",
            lambda: f"""({x()}|truncate({self.pick("5", "8, true", "3, false, ''", "6, leeway=0")}))""",
            lambda: f"({x()}|center({k()}))", lambda: f"{x()}.{self.pick('center', 'ljust', 'rjust', 'zfill')}({self.int(0)})",
            lambda: f"({x()} if {e()} else {x()})", lambda: f"{x()}.{self.pick('removeprefix', 'removesuffix')}({x()})",
        ])()

    def percent(self):
        return self.pick("%s", "%r", "%d", "%5d", "%-5d|", "%05d", "%+d", "%x", "%o", "%X", "%.3f", "%8.2f", "%e", "%g", "%G", "%%%s", "%.2s", "%5s|",
                         "%-5s|", "%c", "%i", "%#x", "%(a)s", "%s %s", "%.3d")

    def brace(self):
        return self.pick("{}", "{0}{1}", "{1}-{0}", "{!r}", "{:>8}", "{:<8}|", "{:^8}|", "{:*^9}", "{:05}", "{:d}", "{:,}", "{:.2f}", "{:+}", "{:x}",
                         "{:.1%}", "{:.3}", "{:e}", "{:g}", "{{}}{}", "{0[0]}", "{0.a}", "{:{}}", "{:#x}", "{:b}", "{:s}", "{:c}", "{", "}", "{x}", "{:_}")

    def slice(self, d):
        part = lambda: self.pick("", "", str(self.r.randint(-6, 6)), self.int(d - 2))
        return f"{part()}:{part()}{self.pick('', '', ':' + self.pick('1', '2', '-1', '-2', '', '0'))}"

    def int(self, d):
        if d <= 0:
            return self.pick("i", "n", "z", str(self.r.randint(0, 12)), "-2", "d.a", "l[0]", "0x1F", "1_000", "0b11", "b")
        x = lambda: self.int(d - 1)
        return self.r.choice([
            lambda: f"({x()} {self.pick('+', '-', '*', '//', '%')} {x()})", lambda: f"({x()} ** {self.r.randint(0, 4)})", lambda: f"-{x()}", lambda: f"+{x()}",
            lambda: f"({self.expr(d - 1)}|{self.pick('length', 'count')})", lambda: f"({self.expr(d - 1)}|int)", lambda: f"({self.text(d - 1)}|int(5, 16))",
            lambda: f"({x()}|abs)", lambda: f"({self.list(d - 1)}|sum)", lambda: f"({self.num(d - 1)}|round|int)",
            lambda: f"{self.text(d - 1)}.{self.pick('find', 'rfind', 'count', 'index')}({self.text(d - 1)})", lambda: f"({self.text(d - 1)}|wordcount)",
            lambda: f"{self.list(d - 1)}.{self.pick('count', 'index')}({self.expr(d - 1)})",
        ])()

    def num(self, d):
        if d <= 0:
            return self.pick("f", "g", "h", "i", "n", "1.5", "2e3", "0.1", "1e-5", "3.0", "b")
        x = lambda: self.num(d - 1)
        return self.r.choice([
            lambda: f"({x()} {self.pick('+', '-', '*', '/', '//', '%')} {x()})", lambda: f"({x()} ** {self.pick(2, -1)})", lambda: self.int(d - 1),
            lambda: f"""({x()}|round({self.pick("", "1", "2", "-1", "1, 'floor'", "0, 'ceil'")}))""", lambda: f"({self.expr(d - 1)}|float)", lambda: f"({x()}|abs)",
            lambda: f"({self.list(d - 1)}|{self.pick('min', 'max', 'sum', 'first', 'last')})",
        ])()

    def list(self, d):
        if d <= 0:
            return self.pick("l", "ls", "lm", "le", "[1, 2, 3]", "['x', 'y']", "(1, 'a')", "[]", "d", "range(4)", "ld", "[true, none]", "s")
        x = lambda: self.list(d - 1)
        return self.r.choice([
            lambda: "[" + ", ".join(self.expr(d - 1) for _ in range(self.r.randint(0, 3))) + "]", lambda: f"({x()} + {x()})", lambda: f"({x()}|list)",
            lambda: f"({x()}|{self.pick('sort', 'sort(reverse=true)', 'sort(case_sensitive=true)', 'unique|list', 'reverse|list', 'batch(2)|list', 'batch(2, 0)|list', 'slice(2)|list')})",
            lambda: f"""(ld|{self.pick("map(attribute='name')", "selectattr('ok')", "rejectattr('ok')", "selectattr('age', '>', 1)", "sort(attribute='age')", "map(attribute='zip', default=0)", "groupby('ok')", "sort(attribute='ok,name')")}|list)""",
            lambda: f"""({x()}|{self.pick("map('upper')", "map('string')", "select", "reject", "select('string')", "reject('none')", "select('in', l)", "map('int')", "select('defined')")}|list)""",
            lambda: f"{self.dict(d - 1)}.{self.pick('keys', 'values', 'items')}()", lambda: f"""({self.dict(d - 1)}|{self.pick("dictsort", "items|list", "list", "dictsort(by='value')", "dictsort(reverse=true)")})""",
            lambda: f"""{self.text(d - 1)}.split({self.pick("", self.text(d - 1), "','", "'l', 1", "none, 1")})""", lambda: f"""{self.text(d - 1)}.rsplit({self.pick("", "'l', 1", "none, 1")})""",
            lambda: f"{x()}[{self.slice(d)}]", lambda: f"range({self.int(0)})", lambda: f"range({self.int(0)}, {self.int(0)}, {self.pick('1', '2', '-1')})|list",
            lambda: f"({x()} * {self.pick(0, 1, 2)})", lambda: f"{self.text(d - 1)}.splitlines()", lambda: f"{self.text(d - 1)}.partition({self.text(d - 1)})",
        ])()

    def dict(self, d):
        if d <= 0:
            return self.pick("d", "de", "nested", "ld[0]", "{'k': 1}", "messages[1]")
        return self.r.choice([
            lambda: "{" + ", ".join(f"{self.expr(d - 1)}: {self.expr(d - 1)}" for _ in range(self.r.randint(0, 3))) + "}", lambda: f"dict({self.dict(d - 1)}, zz={self.expr(d - 1)})",
            lambda: f"dict(a={self.expr(d - 1)})", lambda: "nested.m",
        ])()

    def bool(self, d):
        e = lambda: self.expr(d - 1)
        return self.r.choice([
            lambda: f"({e()} {self.pick('==', '!=', '<', '<=', '>', '>=')} {e()})", lambda: f"({e()} {self.pick('in', 'not in')} {e()})", lambda: f"(not {e()})",
            lambda: f"({e()} {self.pick('and', 'or')} {e()})", lambda: f"({self.int(d - 1)} < {self.int(d - 1)} <= {self.int(d - 1)})",
            lambda: f"({e()} is {self.pick('', 'not ')}{self.pick('defined', 'undefined', 'none', 'string', 'number', 'integer', 'float', 'boolean', 'mapping', 'sequence', 'iterable', 'true', 'false', 'odd', 'even', 'lower', 'upper', 'callable')})",
            lambda: f"({e()} is {self.pick('eq', 'equalto', 'ne', 'lt', 'ge', 'in', 'divisibleby', 'sameas')}({e()}))", lambda: f"({e()} is divisibleby 3)",
            lambda: f"{self.text(d - 1)}.{self.pick('startswith', 'endswith')}({self.text(d - 1)})", lambda: f"{self.text(d - 1)}.{self.pick('isdigit', 'isalpha', 'isupper', 'islower', 'isspace', 'isalnum', 'istitle')}()",
            lambda: f"{self.text(d - 1)}.startswith(({self.text(d - 1)}, {self.text(d - 1)}))",
        ])()

    def any(self, d):
        e = lambda: self.expr(d - 1)
        return self.r.choice([
            lambda: f"{e()}.{self.pick('a', 'b', 'name', 'items', 'zip', 'k', 'role')}", lambda: f"""{e()}[{self.pick("0", "-1", "1", "'a'", "'name'", "99", "'items'")}]""", lambda: f"{e()}[{e()}]",
            lambda: f"""({e()}|{self.pick("first", "last", "default(1)", "d('x', true)", "default", "min", "max")})""", lambda: f"({e()} if {e()} else {e()})", lambda: f"({e()} if {e()})",
            lambda: f"{self.dict(d - 1)}.get({e()}{self.pick('', ', 5')})", lambda: f"({e()} {self.pick('and', 'or')} {e()})", lambda: f"({e()} {self.pick('+', '*', '-', '/', '%', '//')} {e()})",
            lambda: f"""({e()}|attr({self.pick("'a'", "'name'", "'upper'")}))""", lambda: f"{e()}|{self.pick('upper', 'list', 'length', 'int', 'float', 'join', 'sort', 'tojson', 'abs', 'items|list', 'title')}",
        ])()

    def expr(self, d):
        if d <= 0:
            return self.pick("missing", "nil", "b", "c", self.text(0), self.int(0), self.num(0), self.list(0), self.dict(0))
        kind = self.pick(*[self.text, self.int, self.num, self.list, self.dict, self.bool] * 2, self.any)
        return kind(d)

    def tag(self, body, name=None):
        return "{%" + self.pick("", "", "-", "+") + " " + body + " " + self.pick("", "", "-", "+") + "%}"

    def data(self):
        return self.pick("", " ", "\n", "x\n", "  \n  ", "a b", "\n\n", "\t", "é{ x", "\r\n", "{# note #}", "{#- note -#}\n", "{% raw %}{{ x }}{% endraw %}")

    def output(self, d):
        return "{{" + self.pick("", "", "-") + " " + self.expr(d) + " " + self.pick("", "", "-") + "}}"

    def name(self):
        return self.pick("x", "y", "w", "new", "ns")

    def block(self, d, loop=False):
        return "".join(self.data() + self.statement(d, loop) + self.data() for _ in range(self.r.randint(1, 3)))

    def statement(self, d, loop=False):
        if d <= 0:
            return self.output(self.r.randint(0, 2))
        sub = lambda inside=loop: self.block(d - 1, inside)
        e = lambda: self.expr(self.r.randint(0, 2))
        t = self.tag
        options = [
            lambda: self.output(self.r.randint(0, 3)), lambda: "{{ " + self.text(1) + "|e }}", lambda: t(f"set {self.name()} = {e()}"), lambda: t(f"set {self.name()}, {self.name()} = {e()}, {e()}"),
            lambda: t(f"if {e()}") + sub() + t("endif"), lambda: t(f"if {e()}") + sub() + t(f"elif {e()}") + sub() + t("else") + sub() + t("endif"),
            lambda: t(f"for {self.name()} in {self.list(1)}") + sub(True) + t("endfor"), lambda: t(f"for x in {self.list(1)} if {e()}") + sub(True) + t("else") + sub() + t("endfor"),
            lambda: t(f"for k, v in {self.dict(0)}.items()") + "{{ k }}={{ v }}" + sub(True) + t("endfor"), lambda: t(f"set {self.name()}") + sub(False) + t("endset"),
            lambda: t(f"set {self.name()} | {self.pick('upper', 'trim', 'trim|length')}") + sub(False) + t("endset"),
            lambda: t(f"macro m({self.pick('', 'x', 'x, y=2', 'x=i')})") + sub(False) + t("endmacro") + "{{ m(" + self.pick("", "1", "1, 2", "y=3", "x=s") + ") }}",
            lambda: t(f"set ns = namespace(x={e()}, c=0)") + t(f"for i in {self.list(0)}") + t("set ns.c = ns.c + 1") + t(f"set ns.x = {e()}") + t("endfor") + "{{ ns.c }}{{ ns.x }}",
            lambda: t(f"""filter {self.pick("upper", "trim", "replace('a', 'b')|title", "indent")}""") + sub(False) + t("endfilter"),
            lambda: t(f"with x = {e()}") + sub() + t("endwith"), lambda: t("generation") + sub(False) + t("endgeneration"),
            lambda: t("macro w(p)") + "<{{ p }}{{ caller(1) }}>" + t("endmacro") + t(f"call(v) w({e()})") + "{{ v }}" + sub(False) + t("endcall"),
        ]
        if loop:
            options += [lambda: t("if " + self.pick("loop.index > 1", "loop.first", "loop.last", e())) + t(self.pick("break", "continue")) + t("endif"),
                        lambda: "{{ loop." + self.pick("index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem", "depth", "cycle('a', 'b')", "changed(i)", "zip") + " }}"]
        return self.r.choice(options)()


def environment():
    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller):
            return caller()

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return env


def main():
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    env = environment()
    print(json.dumps(VARIABLES))

    def too_slow(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_slow)
    # Repetition can ask for any memory; it is refused here too.
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    for n in range(count):
        maker = Maker(seed * 1000003 + n)
        template = maker.output(maker.r.randint(1, 4)) if n % 2 else maker.block(maker.r.randint(1, 3))
        case = {"template": template}
        signal.setitimer(signal.ITIMER_REAL, 1)
        try:
            case["text"] = env.from_string(template).render(**json.loads(json.dumps(VARIABLES)))
        except TimeoutError:
            continue
        except Exception as error:  # whatever Python raises, the template must be refused here as well
            case["error"] = f"{type(error).__name__}: {error}"[:200]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        text = case.get("text", "")
        # Jinja2 folds constant dicts with impossible keys even where they are never reached.
        if "unhashable" in case.get("error", ""):
            continue
        # Addresses differ from run to run, and long texts tell no more than short ones.
        if " at 0x" in text.lower() or len(text) > 20000:
            continue
        try:
            line = json.dumps(case)
            line.encode("utf-8")
            text.encode("utf-8")
        except UnicodeError:
            continue
        print(line)


main()
