#!/usr/bin/env python3
"""Everything that a GPU is asked for, by one command: the hardware suite, our kernels, peers beside them, the table.

Needs Python 3.8 and a driver; peers need PyTorch, and what else is importable takes part. Each step has a time limit of
its own; a step that fails is named, and the rest goes on. Results: `results.json` and `table.md` in the output folder.
Exit code: 0 where every gate that was measured passes, 1 where one fails, 2 where nothing could be measured.
"""

import argparse
import json
import os
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gates
import peers as others

HERE = Path(__file__).resolve().parent
FAULTS = ("missing-workgroup", "flipped-bit", "overrun", "written-input", "unsteady")
# Seconds that loading PyTorch may take.
LOADING = 30.0

# Settings of a run that fits into ten minutes.
SHORT = {"budget": 570.0, "suite_seconds": 60.0, "step_seconds": 60.0, "peer_seconds": 45.0, "rounds": 1, "sample_ms": 150}


class Run:
    """One run: its settings, what it found, what went wrong."""

    def __init__(self, options):
        self.options = options
        self.start = time.monotonic()
        self.problems = []
        self.result = {"device": None, "suite": {}, "roofs": {}, "ours": [], "peers": [], "skipped": {}}
        self.result.update(attend=[], attend_peers=[])

    def left(self):
        """Seconds of the budget that are left."""
        return self.options.budget - (time.monotonic() - self.start)

    def problem(self, step, why):
        self.problems.append({"step": step, "why": why[-2000:]})
        print(f"{step}: {why.strip().splitlines()[-1] if why.strip() else 'failed'}", file=sys.stderr, flush=True)

    def bitsmith(self, step, arguments, limit):
        """Runs our binary; its exit code and its JSON, or None and None."""
        limit = min(limit, self.left())
        if limit < 1:
            self.problem(step, "the time of the whole run is used up")
            return None, None
        command = [*self.options.binary, *arguments, "--device", self.options.device, "--json"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            self.problem(step, f"took longer than {limit:.0f} s")
            return None, None
        except OSError as error:
            self.problem(step, str(error))
            return None, None
        for note in (text for text in done.stderr.splitlines() if text.startswith("note: ")):
            if note not in self.result.setdefault("notes", []):
                self.result["notes"].append(note)
        try:
            return done.returncode, json.loads(done.stdout)
        except ValueError:
            self.problem(step, done.stderr or f"exit code {done.returncode}, no JSON")
            return done.returncode, None


def suite(run):
    """The hardware suite, and that it finds faults."""
    planted = {}
    for fault in FAULTS:
        step = f"selftest with {fault}"
        code, found = run.bitsmith(step, ["selftest", "--seed", "20", "--count", "4", "--plant", fault], 60)
        if found is not None:
            planted[fault] = code == 1 and len(found["failures"]) == found["cases"] > 0
            run.result["device"] = run.result["device"] or found["device"]
        elif code == 2:
            # The device cannot be opened: nothing else can be asked of it.
            return False
    limit = min(run.options.suite_seconds, max(run.left() - 30, 1))
    arguments = ["selftest", "--count", str(run.options.cases), "--time-limit", str(int(limit))]
    code, found = run.bitsmith("selftest", arguments, limit + 60)
    if found is not None:
        run.result["suite"] = {**found, "planted": planted, "exit_code": code}
        run.result["device"] = found["device"]
        if code != 0:
            run.problem("selftest", f"{len(found['failures'])} of {found['cases']} cases failed")
    return True


def higher_roofs(run, found):
    """Keeps the highest of each roof that was measured in this run."""
    for roofs in found["roofs"]:
        known = run.result["roofs"]
        known["read_gbs"] = max(known.get("read_gbs", 0.0), roofs.get("read_gbs") or 0.0)
        arithmetic = known.setdefault("arithmetic", {})
        for peak in roofs.get("arithmetic", []):
            arithmetic[peak["name"]] = max(arithmetic.get(peak["name"], 0.0), peak["gops"])


def measured(run, step, arguments):
    """What `bitsmith bench` measures with the run's settings: its exit code and rows; roofs and the device are kept."""
    arguments = ["bench", *arguments, "--cycle-mb", str(run.options.cycle_mb), "--budget-ms", str(run.options.sample_ms)]
    code, found = run.bitsmith(step, arguments, run.options.step_seconds)
    if found is None:
        return None, []
    run.result["device"] = run.result["device"] or found.get("device")
    higher_roofs(run, found)
    return code, found["measurements"]


def keep(rows, mine, **key):
    """Adds a row, or its samples to the row of this key that is there; that row."""
    old = gates.find(rows, **key)
    if old is None:
        rows.append(mine)
        old = mine
    else:
        old["samples"] += mine["samples"]
        old["check_passed"] = old["check_passed"] and mine["check_passed"]
    old["seconds"] = statistics.median(old["samples"])
    return old


def ours(run, kind, shape, rows):
    """Our kernels of one matrix, with several numbers of rows; adds rows."""
    (n, k), how = shape, gates.KINDS[kind]
    step = f"bench {kind} {n}x{k}"
    arguments = ["--format", how["format"], "--activation", how["activation"], "--result", how["result"]]
    code, found = measured(run, step, [*arguments, "-n", str(n), "-k", str(k), "-m", ",".join(map(str, rows))])
    for row in found:
        check = row["check"]
        mine = {"kind": kind, "n": n, "k": k, "m": row["m"], "bytes": row["bytes"], "entry": row["entry"]}
        mine.update(schedule=row["schedule"], samples=[row["seconds"]["median"]], copies=row["copies"])
        mine.update(check_passed=check["wrong"] == 0 and check["compared"] > 0, worst_ratio=check["worst_ratio"])
        old = keep(run.result["ours"], mine, kind=kind, n=n, k=k, m=row["m"])
        old["gops"] = 2 * old["m"] * n * k / old["seconds"] / 1e9
    if code not in (0, None):
        run.problem(step, "a kernel is out of bounds")


def attend(run, kv):
    """Our attention over one format of the cache; adds a row."""
    shape, step = gates.ATTEND, f"bench attend {kv}"
    arguments = ["attend", "--kv", kv, "--context", str(shape["context"]), "--batch", str(shape["batch"])]
    arguments += ["--heads", str(shape["heads"]), "--kv-heads", str(shape["kv_heads"]), "--chunk", "1"]
    code, found = measured(run, step, [*arguments, "--head-dim", str(shape["head_dim"]), "--page", str(shape["page"])])
    for row in found:
        if row["phase"] != "decode":
            continue
        seconds, error = row["seconds"]["median"], row["error_of_bound"]
        mine = {"kv": row["kv"], "samples": [seconds], "bytes": row["gigabytes_per_second"] * 1e9 * seconds}
        # What is no number comes as null.
        mine.update(check_passed=error is not None and error <= 1, error_of_bound=error)
        keep(run.result["attend"], mine, kv=row["kv"])
    if code not in (0, None):
        run.problem(step, "a result is out of its bound")


class Peers:
    """The process that runs peers: a line of JSON to it, a line of JSON back. It is asked for one peer at a time, so that one
    that hangs costs the others nothing."""

    def __init__(self, run):
        self.run = run
        self.process = None
        self.dropped = {name for name in run.options.without.split(",") if name}

    def each(self, request):
        """Answers of every peer that still takes part."""
        for peer in others.PEERS[request["kind"]]:
            name = peer.__name__
            # A peer that was too slow with many rows may still serve few.
            place = (name, request["kind"], request.get("m", 1) > others.CYCLED_ROWS)
            if name in self.dropped or place in self.dropped:
                continue
            try:
                answer = self.ask({**request, "peer": name}, self.run.options.peer_seconds)
            except (OSError, ValueError, TimeoutError) as error:
                self.end()
                self.dropped.add(place)
                self.run.result["skipped"][others.label(name, request)] = str(error)
                continue
            if answer is None:
                return
            yield answer
            if answer["torch"] is None:
                return

    def ask(self, request, limit):
        """The answer, or None where no time is left. Raises what went wrong otherwise."""
        if self.process is None:
            command = [self.run.options.python, str(HERE / "peers.py")]
            # In a session of its own: compilers that a peer started end with it.
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
            limit += LOADING
        limit = min(limit, self.run.left())
        if limit < 1:
            self.run.problem(others.label(request["peer"], request), "the time of the whole run is used up")
            return None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.process.stdout, selectors.EVENT_READ)
            if not waiting.select(limit):
                raise TimeoutError(f"took longer than {limit:.0f} s")
        answer = self.process.stdout.readline()
        if not answer:
            raise OSError(f"the process of peers ended with exit code {self.process.wait(10)}")
        return json.loads(answer)

    def end(self):
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except OSError:
                # It has ended by itself, and so have those that it started.
                self.process.kill()
            try:
                self.process.communicate(timeout=10)
            except (OSError, ValueError, subprocess.TimeoutExpired):
                # A kernel that does not end keeps the process; it ends with the machine's lease.
                pass
            self.process = None


def peers(run, process, requests, into, keys):
    """Every peer of several requests; adds rows, with these keys of the request, and what was skipped."""
    for request in requests:
        request = {**request, "cycle_mb": run.options.cycle_mb, "sample_ms": run.options.sample_ms}
        for answer in process.each(request):
            run.result["torch"] = answer.get("torch", run.result.get("torch"))
            run.result["skipped"].update(answer.get("skipped", {}))
            for row in answer.get("rows", []):
                run.result[into].append({**{key: request[key] for key in keys}, **row})


def matmul_peers(run, process, kind, shape, rows):
    requests = [{"kind": kind, "n": shape[0], "k": shape[1], "m": m} for m in rows]
    peers(run, process, requests, "peers", ("kind", "n", "k", "m"))


def attend_peers(run, process, kv):
    peers(run, process, [{"kind": "attend", "kv": kv, **gates.ATTEND}], "attend_peers", ("kind", "kv"))


def write(folder, name, text):
    """Writes a file at once: to another name first."""
    handle, path = tempfile.mkstemp(dir=folder, prefix=name)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.chmod(path, 0o644)
    os.replace(path, Path(folder) / name)


def finish(run):
    """Judges and writes; called after every step, so that a run that is cut off leaves what it has."""
    result = run.result
    attention = (result["attend"], result["attend_peers"])
    lines = gates.judge(result["ours"], result["peers"], result["roofs"], result["suite"], *attention)
    device = result["device"] or {}
    head = f"# {device.get('model', 'no device')} ({run.options.device})\n\n"
    text = head + gates.markdown(lines)
    for name, why in result["skipped"].items():
        text += f"\nskipped: {name}: {why}"
    for problem in run.problems:
        text += f"\nproblem: {problem['step']}: {problem['why'].strip().splitlines()[-1] if problem['why'].strip() else ''}"
    document = {**result, "table": lines, "problems": run.problems, "seconds": time.monotonic() - run.start}
    write(run.options.out, "results.json", json.dumps(document, indent=1) + "\n")
    write(run.options.out, "table.md", text.rstrip() + "\n")
    return lines, text


def peer_names():
    return ", ".join(sorted({peer.__name__ for several in others.PEERS.values() for peer in several}))


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    beside = HERE / "bitsmith"
    built = HERE.parent.parent / "target" / "release" / "bitsmith"
    parser.add_argument("--binary", default=str(beside if beside.exists() else built), help="our release binary")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", default=os.environ.get("OUT", "gpu-results"), help="folder of the results")
    parser.add_argument("--python", default=sys.executable, help="a Python with PyTorch, for peers")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--cases", type=int, default=2000, help="cases of the hardware suite")
    parser.add_argument("--suite-seconds", type=float, default=120.0, help="time of the hardware suite")
    parser.add_argument("--step-seconds", type=float, default=120.0, help="time limit of each further step")
    parser.add_argument("--peer-seconds", type=float, default=120.0, help="time limit of one peer of one product")
    parser.add_argument("--without", default="", help="peers to leave out, separated by commas: " + peer_names())
    parser.add_argument("--budget", type=float, default=3600.0, help="time of the whole run, seconds")
    parser.add_argument("--rounds", type=int, default=2, help="times that ours and peers take turns on each matrix")
    parser.add_argument("--sample-ms", type=int, default=300)
    parser.add_argument("--cycle-mb", type=int, default=512, help="weights to cycle through: above any cache")
    kinds = ", ".join([*gates.KINDS, "attend"])
    parser.add_argument("--only", default="", help="kinds to measure, separated by commas: " + kinds)
    parser.add_argument("--no-suite", action="store_true", help="leave the hardware suite out")
    parser.add_argument("--short", action="store_true", help="what fits into ten minutes; other options still count")
    if "--short" in (sys.argv[1:] if arguments is None else arguments):
        parser.set_defaults(**SHORT)
    options = parser.parse_args(arguments)
    # A script of Python stands in for the binary in tests.
    options.binary = [sys.executable, options.binary] if options.binary.endswith(".py") else [options.binary]
    return options


def main(arguments=None):
    run = Run(parse(arguments))
    Path(run.options.out).mkdir(parents=True, exist_ok=True)
    process = Peers(run)
    if run.options.no_suite or suite(run):
        only = [kind for kind in run.options.only.split(",") if kind]
        steps = [
            (kind, f"{kind} {shape[0]}x{shape[1]}", ours, matmul_peers, (kind, shape, rows))
            for kind, shape, rows in gates.PLAN
        ]
        steps += [("attend", f"attend {kv}", attend, attend_peers, (kv,)) for kv in gates.ATTEND_SHARES]
        for kind, name, own, theirs, arguments in steps:
            if only and kind not in only:
                continue
            for turn in range(max(run.options.rounds, 1)):
                print(f"{name}, round {turn + 1}, {run.left():.0f} s left", file=sys.stderr, flush=True)
                own(run, *arguments)
                if turn == 0 and not run.options.no_peers:
                    theirs(run, process, *arguments)
                finish(run)
    process.end()
    lines, text = finish(run)
    print(text)
    verdicts = {row["verdict"] for row in lines}
    return 1 if "FAIL" in verdicts else 0 if "pass" in verdicts else 2


if __name__ == "__main__":
    sys.exit(main())
