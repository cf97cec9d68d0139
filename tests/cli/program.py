"""What the tests of the real program share: the program, two models, and what a refusal looks like."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM = sys.argv.pop(1)
ORACLE = pathlib.Path(__file__).resolve().parent.parent / "data" / "oracle"
TINY = str(ORACLE / "v3_tiny")
MTP = str(ORACLE / "v3_mtp")  # with a trained MTP module


def fathom(*arguments, stdin="", **options):
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.run([PROGRAM, *arguments], input=stdin, stderr=subprocess.PIPE, encoding="utf-8", timeout=120, **options)


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def assert_refused(self, result, code, *words):
        """One line on stderr that holds `words`, nothing on stdout."""
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertTrue(result.stderr.startswith("fathom: "), result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)
        self.assertEqual(result.stdout or "", "")

    def assert_done(self, result):
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    def generate(self, *arguments, **options):
        return fathom("generate", "--model", TINY, *arguments, **options)

    def generate_json(self, *arguments, **options):
        return json.loads(self.assert_done(self.generate("--json", *arguments, **options)))
