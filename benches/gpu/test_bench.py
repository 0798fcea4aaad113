"""Tests of the table and of the run, with a stand-in for the binary: no GPU, no PyTorch."""

import contextlib
import io
import json
import os
import sys
import tempfile
import textwrap
import types
import unittest
from pathlib import Path
from unittest import mock

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


def attention(share=0.85, sound=True):
    """Rows of attention at a share of read bandwidth, and a peer a tenth slower."""
    ours = []
    for kv in gates.ATTEND_SHARES:
        seconds = 1e9 / (share * READ * 1e9)
        ours.append({"kv": kv, "seconds": seconds, "bytes": 1e9, "check_passed": sound})
    return ours, [{"who": "sdpa flash", "kv": "f16", "seconds": 1.1 * ours[0]["seconds"]}]


def verdicts(lines):
    return {(line["gate"], line["subject"]): line["verdict"] for line in lines}


class Table(unittest.TestCase):
    def test_fast_kernels_pass_everything(self):
        rows = fast()
        lines = gates.judge(rows, peers(rows, 1.1), ROOFS, SUITE, *attention())
        self.assertEqual({line["verdict"] for line in lines}, {"pass"}, lines)
        self.assertGreaterEqual(len(lines), 20)

    def test_what_is_absent_is_unmeasured(self):
        lines = gates.judge([], [], {}, {})
        self.assertEqual({line["verdict"] for line in lines}, {"unmeasured"}, lines)
        # Every gate has a line all the same.
        self.assertEqual(len({line["gate"] for line in lines}), 10)

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

    def test_attention_is_held_to_bandwidth_and_to_peers(self):
        def judged(ours, others):
            return verdicts(gates.judge([], [], ROOFS, SUITE, ours, others))

        read, over = "decode attention, of read bandwidth", "attend f16, speed over SDPA and FlashInfer"
        shape = "32 x 8192 tokens"
        found = judged(*attention(0.76))
        self.assertEqual([found[(read, f"{kv}, {shape}")] for kv in gates.ATTEND_SHARES], ["FAIL", "pass", "pass", "pass"])
        self.assertEqual(judged(*attention(0.64))[(read, f"int4-head, {shape}")], "FAIL")
        self.assertEqual(judged(*attention(sound=False))[(read, f"int8-head, {shape}")], "FAIL")
        ours, others = attention()
        self.assertEqual(judged(ours, others)[(over, shape)], "pass")
        faster = {"who": "flashinfer", "kv": "f16", "seconds": 0.9 * ours[0]["seconds"]}
        self.assertEqual(judged(ours, [*others, faster])[(over, shape)], "FAIL")
        self.assertEqual(judged(ours, [])[(over, shape)], "unmeasured")
        # A peer of another format of the cache has a line of its own.
        fp8 = over.replace("f16", "fp8e4m3-head")
        self.assertNotIn((fp8, shape), judged(ours, others))
        self.assertEqual(judged(ours, [{**faster, "kv": "fp8e4m3-head"}])[(fp8, shape)], "FAIL")

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
roofs = [{"read_gbs": 4000.0, "arithmetic": [{"name": "mma-bf16", "gops": 610e3}]}]
if arguments[1] == "attend":
    assert (value("--batch"), value("--context"), value("--chunk")) == ("32", "8192", "1")
    row = {"kv": value("--kv"), "context": 8192, "queries": 1, "gigabytes_per_second": 3500.0, "error_of_bound": 0.1}
    rows = [{**row, "phase": phase, "seconds": {"median": 1e-3}} for phase in ("decode", "prefill")]
    print(json.dumps({"device": device, "batch": 32, "roofs": roofs, "measurements": rows}))
    sys.exit(0)
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
print("note: a stand-in", file=sys.stderr)
print(json.dumps({"device": device, "roofs": roofs, "measurements": rows}))
'''


# Stands in for the process of peers.
PROCESS = """
import json, sys, time
for text in sys.stdin:
    peer = json.loads(text)["peer"]
    if peer == "hangs":
        time.sleep(60)
    if peer == "ends":
        sys.exit(3)
    print(json.dumps({"torch": "2", "rows": [{"who": peer, "seconds": 1.0}]}), flush=True)
"""


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
        self.assertEqual([row["kv"] for row in found["attend"]], list(gates.ATTEND_SHARES))
        read = verdicts(found["table"])
        self.assertEqual(read[("decode attention, of read bandwidth", "int4-head, 32 x 8192 tokens")], "pass")
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

    def test_one_kind_can_be_measured_alone(self):
        fake = "BROKEN = False\n" + textwrap.dedent(FAKE)
        code, found, _, _ = self.run_with(fake, "--only", "attend", "--no-suite")
        self.assertEqual((code, found["ours"], found["suite"], len(found["attend"])), (0, [], {}, 4))
        self.assertEqual(found["device"]["model"], "Stand-in GPU")

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

    def run_peers(self, torch, measure, *more):
        """What a run makes of its peers, with a module of this text in place of PyTorch."""
        with tempfile.TemporaryDirectory() as folder:
            run = bench.Run(bench.parse(["--out", folder, "--python", sys.executable, *more]))
            process = bench.Peers(run)
            try:
                (Path(folder) / "torch.py").write_text(torch)
                os.environ["PYTHONPATH"] = folder
                measure(run, process)
            finally:
                os.environ.pop("PYTHONPATH", None)
                process.end()
            self.assertEqual(run.problems, [])
            return run.result

    def test_peers_without_pytorch_are_skipped_by_name(self):
        for measure in (
            lambda run, process: bench.matmul_peers(run, process, "w4a16", (64, 64), [1]),
            lambda run, process: bench.attend_peers(run, process, "f16"),
        ):
            result = self.run_peers("raise ImportError('no torch here')\n", measure)
            self.assertEqual(result["skipped"], {"every peer": "no torch here"})

    def test_a_peer_that_hangs_or_ends_is_dropped_and_the_others_go_on(self):
        def measure(run, process):
            made = [types.SimpleNamespace(__name__=name) for name in ("hangs", "ends", "works")]
            (Path(run.options.out) / "peers.py").write_text(PROCESS)
            with mock.patch.dict(bench.others.PEERS, int8=made), mock.patch.object(bench, "HERE", Path(run.options.out)):
                with mock.patch.object(bench, "LOADING", 1):
                    bench.matmul_peers(run, process, "int8", (64, 64), [1, 16, 4096])

        result = self.run_peers("", measure, "--peer-seconds", "2")
        self.assertEqual([(row["who"], row["m"]) for row in result["peers"]], [("works", m) for m in (1, 16, 4096)])
        self.assertIn("took longer", result["skipped"]["hangs for int8 M=1"])
        self.assertIn("exit code 3", result["skipped"]["ends for int8 M=1"])
        # It is not asked again for few rows, but for many.
        self.assertNotIn("ends for int8 M=16", result["skipped"])
        self.assertIn("ends for int8 M=4096", result["skipped"])

    def test_a_peer_can_be_left_out(self):
        process = bench.Peers(bench.Run(bench.parse(["--without", "gemlite,humming"])))
        process.ask = lambda request, limit: {"torch": "2", "rows": [{"who": request["peer"]}]}
        asked = [answer["rows"][0]["who"] for answer in process.each({"kind": "w2a16", "n": 64, "k": 64, "m": 1})]
        self.assertEqual(asked, ["cublas_f16"])


if __name__ == "__main__":
    unittest.main()
