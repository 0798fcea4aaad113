"""Peers on an NVIDIA GPU: a line of JSON in, a line of JSON out.

A request is {"kind", "n", "k", "m", "cycle_mb", "sample_ms"}, or what `peers_attend` says, and "peer" where one alone is asked
for; the answer is {"torch", "rows": [{"who", "seconds", "min", "max", "samples", "copies", "graph", "error"}], "skipped": {who:
why}}. The protocol is that of `bitsmith bench`: up to 64 rows the weights are cycled through more bytes than any cache holds;
products follow each other in a CUDA graph that is replayed, timed by events; medians count. Each peer's result is compared with
the product over its own dequantized weights first.
"""

import json
import math
import statistics
import sys
import time

import peers_attend
import peers_matmul
from peers_matmul import Skip, need

# Rows up to which weights are cycled through.
CYCLED_ROWS = 64
# Largest relative error (norm of the difference over norm of the product) of a peer that counts: 4-bit codes that are the
# peer's own choice are compared with what they stand for, so that this is the arithmetic's error alone.
MOST_ERROR = 0.02


PEERS = {**peers_matmul.PEERS, **peers_attend.PEERS}


def timed(torch, run, copies, sample_seconds):
    """Seconds per product: each of them once per replay of a graph, at least 20 products and 20 replays."""
    count = copies * math.ceil(20 / copies)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for copy in range(copies):
            run(copy)
    torch.cuda.synchronize()

    def once():
        for turn in range(count):
            run(turn % copies)

    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            once()
        replay, graphed = graph.replay, True
    except RuntimeError:
        torch.cuda.synchronize()
        replay, graphed = once, False
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    replay()
    torch.cuda.synchronize()
    samples, began = [], time.monotonic()
    while len(samples) < 20 or time.monotonic() - began < sample_seconds:
        start.record()
        replay()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1e-3 / count)
        if len(samples) >= 3 and time.monotonic() - began > 10 * sample_seconds:
            break
    return samples, graphed


def measure(torch, peer, request):
    def copies(size):
        cycled = request.get("m", 1) <= CYCLED_ROWS
        return min(max(math.ceil(request["cycle_mb"] * 2**20 / size), 1), 4096) if cycled else 1

    who, run, count, expected, size = peer(torch, request, copies)
    result, wanted = run(0).float(), expected()
    error = ((result - wanted).norm() / wanted.norm()).item()
    need(error <= MOST_ERROR, f"its result is off by {error:.1e} of the product")
    del result, wanted
    samples, graphed = timed(torch, run, count, request["sample_ms"] / 1e3)
    return {
        "who": who,
        "seconds": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
        "samples": len(samples),
        "copies": count,
        "graph": graphed,
        "weight_bytes": size,
        "error": error,
    }


def label(name, request):
    """A peer and what was asked of it."""
    of = request["kv"] if request["kind"] == "attend" else f"M={request['m']}"
    return f"{name} for {request['kind']} {of}"


def answer(torch, request):
    rows, skipped = [], {}
    for peer in PEERS[request["kind"]]:
        name = label(peer.__name__, request)
        if request.get("peer", peer.__name__) != peer.__name__:
            continue
        try:
            rows.append(measure(torch, peer, request))
        except Skip as why:
            skipped[name] = str(why)
        except Exception as error:  # A peer that breaks must not take the others along.
            skipped[name] = f"{type(error).__name__}: {error}"[:500]
        torch.cuda.empty_cache()
    return {"torch": torch.__version__, "rows": rows, "skipped": skipped}


def main():
    torch = why = None
    try:
        import torch

        if not torch.cuda.is_available():
            torch, why = None, "PyTorch sees no CUDA device"
    except ImportError as error:
        why = str(error)
    # What libraries print must not get between the answers.
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        if torch is None:
            reply = {"torch": None, "rows": [], "skipped": {"every peer": why}}
        else:
            torch.manual_seed(1)
            # Products in f32 are the reference.
            torch.backends.cuda.matmul.allow_tf32 = False
            reply = answer(torch, request)
        out.write(json.dumps(reply) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
