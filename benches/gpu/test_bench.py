"""Tests of the table and of the run, with a stand-in for the binary: no GPU, no PyTorch."""

import contextlib
import io
import json
import os
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bench  # noqa: E402
import gates  # noqa: E402

READ = 4000.0
ROOFS = {"read_gbs": READ, "arithmetic": {"mma-f16": 600e3, "mma-bf16": 610e3, "mma-i8": 1200e3, "fma": 60e3}}
BYTES = {"w4a16": 0.516, "w2a16": 0.266, "w3a16": 0.391, "w8a16": 1.016, "fp8": 1.0, "int8": 1.0}
SUITE = {"cases": 10, "failures": [], "passed": True, "planted": {"overrun": True}}


def row(kind, n, k, m, seconds, sound=True):
    size = n * k * BYTES[kind]
    return {
        "kind": kind, "n": n, "k": k, "m": m, "seconds": seconds, "bytes": size,
        "gops": 2 * n * k * m / seconds / 1e9, "check_passed": sound,
    }


def fast():
    """Rows that pass every gate."""
    rows = []
    for kind, (n, k), many in gates.PLAN:
        for m in many:
            memory = n * k * BYTES[kind] / (0.85 * READ * 1e9)
            arithmetic = 2 * n * k * m / (0.7 * 610e12)
            rows.append(row(kind, n, k, m, max(memory, arithmetic)))
    return rows


def peers(rows, factor):
    """A peer beside each row that takes `factor` times as long."""
    names = {"fp8": ["scaled_mm row"], "int8": ["int_mm"]}
    return [
        {"who": who, "kind": r["kind"], "n": r["n"], "k": r["k"], "m": r["m"], "seconds": factor * r["seconds"]}
        for r in rows
        for who in names.get(r["kind"], ["cublas-f16", "marlin vllm-0.9"])
    ]


def verdicts(lines):
    return {(line["gate"], line["subject"]): line["verdict"] for line in lines}


class Table(unittest.TestCase):
    def test_fast_kernels_pass_everything(self):
        rows = fast()
        lines = gates.judge(rows, peers(rows, 1.1), ROOFS, SUITE)
        self.assertEqual({line["verdict"] for line in lines}, {"pass"}, lines)
        self.assertGreaterEqual(len(lines), 20)

    def test_what_is_absent_is_unmeasured(self):
        lines = gates.judge([], [], {}, {})
        self.assertEqual({line["verdict"] for line in lines}, {"unmeasured"}, lines)
        # Every gate has a line all the same.
        self.assertEqual(len({line["gate"] for line in lines}), 8)

    def test_each_gate_can_fail(self):
        def judged(change, factor=1.1):
            rows = fast()
            others = peers(rows, factor)
            change(rows)
            return verdicts(gates.judge(rows, others, ROOFS, SUITE))

        def slower(kind, m, by, shape=(8192, 8192)):
            def change(rows):
                found = gates.find(rows, kind=kind, n=shape[0], k=shape[1], m=m)
                found.update(row(kind, *shape, m, by * found["seconds"]))
            return change

        big = (57344, 8192)
        self.assertEqual(judged(slower("w4a16", 1, 1.05, big))[("W4A16 M=1, of read bandwidth", "57344x8192")], "pass")
        self.assertEqual(judged(slower("w4a16", 1, 1.07, big))[("W4A16 M=1, of read bandwidth", "57344x8192")], "FAIL")
        sixteen = "W4A16 M=16, time over M=1"
        self.assertEqual(judged(slower("w4a16", 16, 1.14))[(sixteen, "8192x8192")], "pass")
        self.assertEqual(judged(slower("w4a16", 16, 1.16))[(sixteen, "8192x8192")], "FAIL")
        width = ("M=1, microseconds beyond W4's in proportion to bytes", "w3a16 8192x8192")
        own = gates.find(fast(), kind="w3a16", m=1)["seconds"]
        self.assertEqual(judged(slower("w3a16", 1, 1 + 2.9e-6 / own))[width], "pass")
        self.assertEqual(judged(slower("w3a16", 1, 1 + 3.1e-6 / own))[width], "FAIL")
        prefill = ("W4A16 prefill, of the matrix roof", "8192x8192 M=4096")
        self.assertEqual(judged(slower("w4a16", 4096, 1.3), factor=2.0)[prefill], "FAIL")
        self.assertEqual(judged(lambda rows: None, factor=0.9)[("w4a16, speed over cuBLAS f16", prefill[1])], "FAIL")
        self.assertEqual(judged(lambda rows: None, factor=0.9)[("fp8, speed over torch._scaled_mm", "8192x8192 M=4096")], "pass")
        self.assertEqual(judged(lambda rows: None, factor=0.7)[("fp8, speed over torch._scaled_mm", "8192x8192 M=4096")], "FAIL")
        self.assertEqual(judged(lambda rows: None, factor=0.9)[("int8, speed over torch._int_mm", "8192x8192 M=4096")], "FAIL")
        self.assertEqual(judged(lambda rows: None, factor=0.9)[("w8a16, speed over Marlin-class peers", "8192x8192 M=1")], "FAIL")

    def test_a_wrong_kernel_is_no_fast_one(self):
        rows = fast()
        gates.find(rows, kind="w4a16", n=8192, m=1)["check_passed"] = False
        found = verdicts(gates.judge(rows, peers(rows, 1.1), ROOFS, SUITE))
        self.assertEqual(found[("W4A16 M=1, of read bandwidth", "8192x8192")], "FAIL")

    def test_a_suite_that_misses_a_planted_fault_fails(self):
        found = gates.hardware({**SUITE, "planted": {"overrun": True, "unsteady": False}})
        self.assertEqual(found["verdict"], "FAIL")
        self.assertIn("unsteady", found["why"])
        self.assertEqual(gates.hardware({**SUITE, "planted": {}})["verdict"], "FAIL")

    def test_the_highest_matrix_rate_is_the_roof(self):
        n = k = m = 8192
        peer = {"who": "cublas-bf16", "kind": "w4a16", "n": n, "k": k, "m": m, "seconds": 2 * n * k * m / 700e12}
        self.assertEqual(gates.matrix_roof(ROOFS, [])[1], "mma-bf16")
        self.assertEqual(gates.matrix_roof(ROOFS, [peer])[1], "cublas-bf16")
        self.assertEqual(gates.matrix_roof({}, []), (None, None))


FAKE = '''
import json, sys
arguments = sys.argv[1:]
value = lambda name: arguments[arguments.index(name) + 1]
device = {"name": value("--device"), "model": "Stand-in GPU", "target": "h200"}
if arguments[0] == "selftest":
    count = int(value("--count"))
    bad = "--plant" in arguments
    failures = [{"seed": seed} for seed in range(count)] if bad else []
    print(json.dumps({"device": device, "cases": count, "passed": not bad, "failures": failures}))
    sys.exit(1 if bad else 0)
n, k = int(value("-n")), int(value("-k"))
if BROKEN and value("--format") == "int3-g128":
    print("error: broken", file=sys.stderr)
    sys.exit(2)
rows = []
for m in map(int, value("-m").split(",")):
    size = n * k * {"int4-g128": 0.516, "int2-g128": 0.266, "int3-g128": 0.391, "int8-g128": 1.016}.get(value("--format"), 1.0)
    seconds = max(size / 3.4e12, 2 * n * k * m / 427e12)
    check = {"wrong": 0, "compared": 10, "worst_ratio": 0.1}
    rows.append({"m": m, "bytes": size, "entry": "kernel", "schedule": {}, "seconds": {"median": seconds}, "copies": 2, "check": check})
roofs = [{"read_gbs": 4000.0, "arithmetic": [{"name": "mma-bf16", "gops": 610e3}]}]
print("note: a stand-in", file=sys.stderr)
print(json.dumps({"device": device, "roofs": roofs, "measurements": rows}))
'''


class Whole(unittest.TestCase):
    def run_with(self, binary, *more):
        with tempfile.TemporaryDirectory() as folder:
            fake = Path(folder) / "fake.py"
            fake.write_text(binary)
            out = Path(folder) / "out"
            arguments = ["--binary", str(fake), "--out", str(out), "--rounds", "1", "--no-peers", *more]
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
                code = bench.main(arguments)
            files = sorted(os.listdir(out))
            self.assertEqual(files, ["results.json", "table.md"])
            return code, json.loads((out / "results.json").read_text()), (out / "table.md").read_text(), said.getvalue()

    def test_a_run_without_peers(self):
        code, found, table, _ = self.run_with("BROKEN = False\n" + textwrap.dedent(FAKE))
        self.assertEqual((code, found["problems"]), (0, []), table)
        self.assertEqual(set(found["suite"]["planted"].values()), {True})
        self.assertEqual(found["roofs"]["read_gbs"], 4000.0)
        self.assertEqual(found["notes"], ["note: a stand-in"])
        self.assertEqual(len(found["ours"]), sum(len(rows) for _, _, rows in gates.PLAN))
        self.assertIn("Stand-in GPU", table)
        self.assertIn("unmeasured", table)

    def test_a_step_that_fails_is_named_and_the_rest_goes_on(self):
        code, found, table, said = self.run_with("BROKEN = True\n" + textwrap.dedent(FAKE))
        self.assertEqual([problem["step"] for problem in found["problems"]], ["bench w3a16 8192x8192"])
        self.assertIn("error: broken", said)
        self.assertIn("problem: bench w3a16 8192x8192: error: broken", table)
        self.assertEqual(verdicts(found["table"])[("M=1, microseconds beyond W4's in proportion to bytes", "w3a16 8192x8192")], "unmeasured")
        self.assertGreater(len(found["ours"]), 10)
        self.assertEqual(code, 0)

    def test_a_machine_without_the_device_measures_nothing(self):
        code, found, table, _ = self.run_with("import sys\nprint('error: unsupported: CUDA: no driver', file=sys.stderr)\nsys.exit(2)\n")
        self.assertEqual(code, 2)
        self.assertIn("no driver", table)
        self.assertEqual({line["verdict"] for line in found["table"]}, {"unmeasured"})

    def test_a_step_has_a_time_limit(self):
        slow = "import time\ntime.sleep(60)\n"
        code, found, _, _ = self.run_with(slow, "--budget", "3", "--step-seconds", "1", "--only", "fp8")
        self.assertEqual(code, 2)
        self.assertIn("took longer", found["problems"][0]["why"])

    def test_a_short_run_has_other_defaults(self):
        self.assertEqual(bench.parse([]).rounds, 2)
        short = bench.parse(["--short", "--suite-seconds", "30"])
        self.assertEqual((short.rounds, short.budget, short.suite_seconds), (1, 570.0, 30.0))

    def test_peers_without_pytorch_are_skipped_by_name(self):
        with tempfile.TemporaryDirectory() as folder:
            options = bench.parse(["--out", folder, "--python", sys.executable])
            run = bench.Run(options)
            process = bench.Peers(run)
            try:
                # A module of this name that cannot be imported stands for a machine without it.
                (Path(folder) / "torch.py").write_text("raise ImportError('no torch here')\n")
                os.environ["PYTHONPATH"] = folder
                bench.peers(run, process, "w4a16", (64, 64), [1])
            finally:
                os.environ.pop("PYTHONPATH", None)
                process.end()
            self.assertEqual(run.result["skipped"], {"every peer": "no torch here"})
            self.assertEqual(run.problems, [])


if __name__ == "__main__":
    unittest.main()
