"""The table: what our kernels must reach, and how rows of measurements are judged.

Reads rows of ours and of peers as dictionaries; makes lines with a verdict each: pass, FAIL or unmeasured. Nothing here
measures, so that all of it is tested without a GPU.

A row of ours: kind, n, k, m, seconds, bytes, gops, check_passed. A row of a peer: who, kind, n, k, m, seconds. Of attention: kv
instead of kind, n, k, m and gops.
"""

# What the kinds of rows are, as `bitsmith bench` takes them.
KINDS = {
    "w4a16": {"format": "int4-g128", "activation": "f16", "result": "f16"},
    "w2a16": {"format": "int2-g128", "activation": "f16", "result": "f16"},
    "w3a16": {"format": "int3-g128", "activation": "f16", "result": "f16"},
    "w8a16": {"format": "int8-g128", "activation": "f16", "result": "f16"},
    "fp8": {"format": "fp8e4m3-channel", "activation": "fp8-token", "result": "bf16"},
    "int8": {"format": "int8-channel", "activation": "int8-token", "result": "bf16"},
}

# Weight matrices (N, K) of the table, and the share of read bandwidth that W4A16 must reach with one row.
SHAPES = [((8192, 8192), 0.65), ((28672, 8192), 0.75), ((57344, 8192), 0.80)]

# What is measured: kind, (N, K), rows.
PLAN = [
    ("w4a16", (8192, 8192), [1, 16, 64, 2048, 4096]),
    ("w4a16", (28672, 8192), [1, 16, 2048]),
    ("w4a16", (57344, 8192), [1, 16]),
    ("w8a16", (8192, 8192), [1]),
    ("w2a16", (8192, 8192), [1]),
    ("w3a16", (8192, 8192), [1]),
    ("fp8", (8192, 8192), [1, 4096, 8192]),
    ("int8", (8192, 8192), [1, 4096, 8192]),
]

# Decode attention: the shape, and the share of read bandwidth that each format of the cache must reach.
ATTEND = {"batch": 32, "context": 8192, "heads": 32, "kv_heads": 8, "head_dim": 128, "page": 64}
ATTEND_SHARES = {"f16": 0.80, "fp8e4m3-head": 0.75, "int8-head": 0.75, "int4-head": 0.65}

# Peers that compute what our weight-only kernels do.
MARLIN_CLASS = ("marlin", "machete", "tinygemm", "gemlite", "humming")

# Largest M that is bound by memory in the table, and least M of prefill.
PREFILL = 2048
W8A8_PREFILL = 4096
# Microseconds that another width may cost beyond its bytes.
WIDTH_SLACK = 3e-6
# How much longer 16 rows may take than one.
SIXTEEN_ROWS = 1.15
MATRIX_SHARE = 0.55
FP8_SHARE = 0.80


def find(rows, **wanted):
    """The first row with these values."""
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)


def peers_of(peers, kind, n, k, m, names=None):
    """The peers' rows of one product, the fastest first."""
    rows = [
        row
        for row in peers
        if (row["kind"], row["n"], row["k"], row["m"]) == (kind, n, k, m)
        and (names is None or row["who"].split(" ")[0] in names)
    ]
    return sorted(rows, key=lambda row: row["seconds"])


def line(gate, subject, measured, wanted, passed, why=""):
    """One line of the table; `passed` is None where something was not measured."""
    verdict = "unmeasured" if passed is None else "pass" if passed else "FAIL"
    return {"gate": gate, "subject": subject, "measured": measured, "wanted": wanted, "verdict": verdict, "why": why}


def missing(gate, subject, wanted, what):
    return line(gate, subject, "-", wanted, None, what + " was not measured")


def sound(row):
    """Whether a row may count: a wrong kernel is no fast one."""
    return row is not None and row["check_passed"]


def bandwidth(ours, roofs):
    for (n, k), share in SHAPES:
        gate, subject, wanted = "W4A16 M=1, of read bandwidth", f"{n}x{k}", f">= {share:.0%}"
        row, read = find(ours, kind="w4a16", n=n, k=k, m=1), roofs.get("read_gbs")
        if row is None or not read:
            yield missing(gate, subject, wanted, "our kernel" if row is None else "read bandwidth")
            continue
        reached = row["bytes"] / row["seconds"] / 1e9 / read
        why = f"{row['seconds'] * 1e6:.1f} us, roof {read:.0f} GB/s"
        yield line(gate, subject, f"{reached:.1%}", wanted, reached >= share and sound(row), why)


def sixteen(ours):
    for (n, k), _ in SHAPES:
        gate, subject, wanted = "W4A16 M=16, time over M=1", f"{n}x{k}", f"<= {SIXTEEN_ROWS:.2f}"
        one, many = (find(ours, kind="w4a16", n=n, k=k, m=m) for m in (1, 16))
        if one is None or many is None:
            yield missing(gate, subject, wanted, "our kernel")
            continue
        ratio = many["seconds"] / one["seconds"]
        yield line(gate, subject, f"{ratio:.3f}", wanted, ratio <= SIXTEEN_ROWS and sound(one) and sound(many))


def widths(ours):
    (n, k), _ = SHAPES[0]
    four = find(ours, kind="w4a16", n=n, k=k, m=1)
    for kind in ("w2a16", "w3a16", "w8a16"):
        gate, subject = "M=1, microseconds beyond W4's in proportion to bytes", f"{kind} {n}x{k}"
        wanted = f"<= {WIDTH_SLACK * 1e6:.0f}"
        row = find(ours, kind=kind, n=n, k=k, m=1)
        if row is None or four is None:
            yield missing(gate, subject, wanted, "our kernel")
            continue
        beyond = row["seconds"] - four["seconds"] * row["bytes"] / four["bytes"]
        why = f"{row['seconds'] * 1e6:.1f} us against {four['seconds'] * 1e6:.1f} us of W4"
        yield line(gate, subject, f"{beyond * 1e6:.2f}", wanted, beyond <= WIDTH_SLACK and sound(row), why)


def matrix_roof(roofs, peers):
    """The highest rate of 16-bit matrix arithmetic that anyone reached in this run, GOP/s, and whose it is."""
    rates = [(gops, name) for name, gops in roofs.get("arithmetic", {}).items() if "16" in name]
    for row in peers:
        if row["who"].startswith("cublas"):
            rates.append((2 * row["m"] * row["n"] * row["k"] / row["seconds"] / 1e9, row["who"]))
    return max(rates, default=(None, None))


def prefill(ours, peers, roofs):
    roof, whose = matrix_roof(roofs, peers)
    for row in ours:
        if row["kind"] != "w4a16" or row["m"] < PREFILL:
            continue
        subject = f"{row['n']}x{row['k']} M={row['m']}"
        gate, wanted = "W4A16 prefill, of the matrix roof", f">= {MATRIX_SHARE:.0%}"
        if roof is None:
            yield missing(gate, subject, wanted, "the matrix roof")
        else:
            share = row["gops"] / roof
            why = f"{row['gops'] / 1e3:.0f} TOP/s, roof {roof / 1e3:.0f} ({whose})"
            yield line(gate, subject, f"{share:.1%}", wanted, share >= MATRIX_SHARE and sound(row), why)
        yield against(row, peers, "cuBLAS f16", ("cublas-f16",), 1.0)
    if not any(row["kind"] == "w4a16" and row["m"] >= PREFILL for row in ours):
        yield missing("W4A16 prefill, of the matrix roof", f"M >= {PREFILL}", f">= {MATRIX_SHARE:.0%}", "our kernel")


def against(row, peers, name, names, share):
    """Our speed over a peer's, the fastest of several."""
    gate = f"{row['kind']}, speed over {name}"
    subject, wanted = f"{row['n']}x{row['k']} M={row['m']}", f">= {share:.2f}"
    found = peers_of(peers, row["kind"], row["n"], row["k"], row["m"], names)
    if not found:
        return missing(gate, subject, wanted, name)
    ratio = found[0]["seconds"] / row["seconds"]
    why = f"ours {row['seconds'] * 1e6:.1f} us, {found[0]['who']} {found[0]['seconds'] * 1e6:.1f} us"
    return line(gate, subject, f"{ratio:.3f}", wanted, ratio >= share and sound(row), why)


def eight_bits(ours, peers):
    for kind, name, names, share in (
        ("fp8", "torch._scaled_mm", ("scaled_mm",), FP8_SHARE),
        ("int8", "torch._int_mm", ("int_mm",), 1.0),
    ):
        rows = [row for row in ours if row["kind"] == kind and row["m"] >= W8A8_PREFILL]
        for row in rows:
            yield against(row, peers, name, names, share)
        if not rows:
            yield missing(f"{kind}, speed over {name}", f"M >= {W8A8_PREFILL}", f">= {share:.2f}", "our kernel")


def marlin(ours, peers):
    """Every weight-only row against the peers that were present."""
    for row in ours:
        if row["kind"].endswith("a16") and peers_of(peers, row["kind"], row["n"], row["k"], row["m"], MARLIN_CLASS):
            yield against(row, peers, "Marlin-class peers", MARLIN_CLASS, 1.0)
    if not any(row["who"].split(" ")[0] in MARLIN_CLASS for row in peers):
        yield missing("speed over Marlin-class peers", "every weight-only row", ">= 1.00", "none of them was present; it")


def hardware(suite):
    gate, wanted = "hardware suite", "every case passes, every planted fault is found"
    if not suite or suite.get("cases") is None:
        return missing(gate, "selftest", wanted, "the suite")
    planted = suite.get("planted", {})
    lost = [name for name, found in planted.items() if not found]
    passed = bool(suite.get("passed")) and bool(planted) and not lost
    measured = f"{len(suite.get('failures', []))} of {suite['cases']} failed"
    why = f"planted faults that were not found: {', '.join(lost)}" if lost else f"{len(planted)} planted faults found"
    return line(gate, "selftest", measured, wanted, passed, why)


def attention(ours, roofs):
    for kv, share in ATTEND_SHARES.items():
        gate, wanted = "decode attention, of read bandwidth", f">= {share:.0%}"
        subject = f"{kv}, {ATTEND['batch']} x {ATTEND['context']} tokens"
        row, read = find(ours, kv=kv), roofs.get("read_gbs")
        if row is None or not read:
            yield missing(gate, subject, wanted, "our kernel" if row is None else "read bandwidth")
            continue
        reached = row["bytes"] / row["seconds"] / 1e9 / read
        why = f"{row['seconds'] * 1e6:.1f} us, roof {read:.0f} GB/s"
        yield line(gate, subject, f"{reached:.1%}", wanted, reached >= share and sound(row), why)


def attention_peers(ours, peers):
    """f16 always, other formats of the cache where a peer serves them."""
    for kv in ATTEND_SHARES:
        gate, wanted = f"attend {kv}, speed over SDPA and FlashInfer", ">= 1.00"
        subject = f"{ATTEND['batch']} x {ATTEND['context']} tokens"
        row = find(ours, kv=kv)
        found = sorted((peer for peer in peers if peer["kv"] == kv), key=lambda peer: peer["seconds"])
        if row is None or not found:
            if kv == "f16" or found:
                yield missing(gate, subject, wanted, "our kernel" if row is None else "neither of them")
            continue
        ratio = found[0]["seconds"] / row["seconds"]
        why = f"ours {row['seconds'] * 1e6:.1f} us, {found[0]['who']} {found[0]['seconds'] * 1e6:.1f} us"
        yield line(gate, subject, f"{ratio:.3f}", wanted, ratio >= 1 and sound(row), why)


def judge(ours, peers, roofs, suite, attend=(), attend_peers=()):
    """Every line of the table, in its order."""
    return [
        hardware(suite),
        *bandwidth(ours, roofs),
        *sixteen(ours),
        *widths(ours),
        *prefill(ours, peers, roofs),
        *eight_bits(ours, peers),
        *marlin(ours, peers),
        *attention(attend, roofs),
        *attention_peers(attend, attend_peers),
    ]


def markdown(lines):
    """The lines as a table."""
    head = "| gate | of | measured | wanted | verdict | |\n|---|---|---|---|---|---|\n"
    cells = ("gate", "subject", "measured", "wanted", "verdict", "why")
    return head + "".join("| " + " | ".join(str(row[cell]) for cell in cells) + " |\n" for row in lines)
