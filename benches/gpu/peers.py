"""Peers on an NVIDIA GPU: a line of JSON in, a line of JSON out.

A request is {"kind", "n", "k", "m", "cycle_mb", "sample_ms"}; the answer is {"torch", "rows": [{"who", "seconds", "min", "max",
"samples", "copies", "graph", "error"}], "skipped": {who: why}}. The protocol is that of `bitsmith bench`: up to 64 rows the
weights are cycled through more bytes than any cache holds; products follow each other in a CUDA graph that is replayed,
timed by events; medians count. Each peer's result is compared with the product over its own dequantized weights first.
"""

import json
import math
import statistics
import sys
import time

# Rows up to which weights are cycled through.
CYCLED_ROWS = 64
# Largest relative error (norm of the difference over norm of the product) of a peer that counts: 4-bit codes that are the
# peer's own choice are compared with what they stand for, so that this is the arithmetic's error alone.
MOST_ERROR = 0.02


class Skip(Exception):
    """A peer that is not here, or does not serve a request."""


def need(condition, why):
    if not condition:
        raise Skip(why)


def random_codes(torch, n, k, bits, group):
    """Unsigned codes [n, k], scales [n, k / group] in f16, and the numbers they stand for in f32."""
    codes = torch.randint(0, 2**bits, (n, k), dtype=torch.int32, device="cuda")
    scales = (torch.rand(n, k // group, device="cuda") + 0.5).half() / 2 ** (bits + 3)
    half = 2 ** (bits - 1)
    weights = (codes - half).float() * scales.float().repeat_interleave(group, 1)
    return codes, scales, weights


def activations(torch, m, k, dtype):
    return torch.randn(m, k, device="cuda").to(dtype)


# Each peer: (torch, n, k, m, copies) -> (who, run(copy), result, expected, bytes of weights). `copies(bytes)` tells how many
# copies of so many bytes are wanted; a peer makes them by cloning, since values do not change the time.


def cublas(torch, request, copies, dtype, name):
    n, k, m = request["n"], request["k"], request["m"]
    x = activations(torch, m, k, dtype)
    weights = torch.randn(n, k, device="cuda").to(dtype)
    many = [weights] + [weights.clone() for _ in range(copies(2 * n * k) - 1)]
    out = torch.empty(m, n, device="cuda", dtype=dtype)

    def run(copy):
        torch.mm(x, many[copy].t(), out=out)
        return out

    return name, run, len(many), lambda: x.float() @ weights.float().t(), 2 * n * k


def cublas_f16(torch, request, copies):
    return cublas(torch, request, copies, torch.float16, "cublas-f16")


def cublas_bf16(torch, request, copies):
    return cublas(torch, request, copies, torch.bfloat16, "cublas-bf16")


def scaled_mm(torch, request, copies, per_row):
    n, k, m = request["n"], request["k"], request["m"]
    need(hasattr(torch, "_scaled_mm"), "torch._scaled_mm is not in this PyTorch")
    fp8 = torch.float8_e4m3fn
    x = activations(torch, m, k, torch.float32).clamp(-8, 8).to(fp8)
    weights = torch.randn(n, k, device="cuda").to(fp8)
    shapes = ((m, 1), (1, n)) if per_row else ((), ())
    scales = [torch.full(shape, 0.5, device="cuda") for shape in shapes]
    many = [weights] + [weights.clone() for _ in range(copies(n * k) - 1)]

    def run(copy):
        return torch._scaled_mm(
            x, many[copy].t(), scale_a=scales[0], scale_b=scales[1], out_dtype=torch.bfloat16, use_fast_accum=True
        )

    name = "scaled_mm " + ("row" if per_row else "tensor")
    return name, run, len(many), lambda: 0.25 * (x.float() @ weights.float().t()), n * k


def scaled_mm_tensor(torch, request, copies):
    return scaled_mm(torch, request, copies, False)


def scaled_mm_row(torch, request, copies):
    return scaled_mm(torch, request, copies, True)


def flashinfer_fp8(torch, request, copies):
    import flashinfer

    n, k, m = request["n"], request["k"], request["m"]
    fp8 = torch.float8_e4m3fn
    x = activations(torch, m, k, torch.float32).clamp(-8, 8).to(fp8)
    weights = torch.randn(n, k, device="cuda").to(fp8)
    scale = torch.ones((), device="cuda")
    many = [weights] + [weights.clone() for _ in range(copies(n * k) - 1)]

    def run(copy):
        out = flashinfer.bmm_fp8(x[None], many[copy].t()[None], scale, scale, torch.bfloat16)
        return out[0]

    who = f"flashinfer {getattr(flashinfer, '__version__', '?')}"
    return who, run, len(many), lambda: x.float() @ weights.float().t(), n * k


def int_mm(torch, request, copies):
    n, k, m = request["n"], request["k"], request["m"]
    need(hasattr(torch, "_int_mm"), "torch._int_mm is not in this PyTorch")
    need(m > 16, "takes more than 16 rows")
    x = torch.randint(-127, 128, (m, k), dtype=torch.int8, device="cuda")
    weights = torch.randint(-127, 128, (n, k), dtype=torch.int8, device="cuda")
    many = [weights] + [weights.clone() for _ in range(copies(n * k) - 1)]
    return "int_mm", lambda copy: torch._int_mm(x, many[copy].t()), len(many), lambda: x.float() @ weights.float().t(), n * k


def tinygemm(torch, request, copies):
    n, k, m = request["n"], request["k"], request["m"]
    need(request["kind"] == "w4a16", "has 4 bits only")
    group = 128
    codes, scales, weights = random_codes(torch, n, k, 4, group)
    bytes_of_pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    try:
        packed = torch._convert_weight_to_int4pack(bytes_of_pairs, 8)
    except RuntimeError:
        # Before PyTorch 2.5 it took the codes themselves.
        packed = torch._convert_weight_to_int4pack(codes, 8)
    # It computes (code - 8) * scale + zero.
    scales = scales.bfloat16()
    weights = (codes - 8).float() * scales.float().repeat_interleave(group, 1)
    pairs = torch.stack([scales, torch.zeros_like(scales)], 2).transpose(0, 1).contiguous()
    x = activations(torch, m, k, torch.bfloat16)
    total = n * k // 2 + pairs.numel() * 2
    many = [packed] + [packed.clone() for _ in range(copies(total) - 1)]

    def run(copy):
        return torch._weight_int4pack_mm(x, many[copy], group, pairs)

    return "tinygemm", run, len(many), lambda: x.float() @ weights.t(), total


def marlin(torch, request, copies):
    import vllm
    from vllm.model_executor.layers.quantization.utils import marlin_utils
    from vllm.model_executor.layers.quantization.utils.marlin_utils_test import marlin_quantize
    from vllm.scalar_type import scalar_types

    n, k, m = request["n"], request["k"], request["m"]
    types = {"w4a16": scalar_types.uint4b8, "w8a16": scalar_types.uint8b128}
    need(request["kind"] in types, "has 4 and 8 bits only")
    kind = types[request["kind"]]
    x = activations(torch, m, k, torch.float16)
    # Its own quantizer takes [k, n].
    reference, packed, scales, g_idx, order, _ = marlin_quantize(
        torch.randn(k, n, device="cuda", dtype=torch.float16), kind, 128, False
    )
    workspace = marlin_utils.marlin_make_workspace_new(torch.device("cuda"))
    empty = marlin_utils.marlin_make_empty_g_idx(torch.device("cuda"))
    total = packed.numel() * packed.element_size() + scales.numel() * scales.element_size()
    many = [packed] + [packed.clone() for _ in range(copies(total) - 1)]

    def run(copy):
        return marlin_utils.apply_gptq_marlin_linear(
            input=x, weight=many[copy], weight_scale=scales, weight_zp=empty, g_idx=g_idx, g_idx_sort_indices=order,
            workspace=workspace, wtype=kind, output_size_per_partition=n, input_size_per_partition=k, is_k_full=True,
        )

    return f"marlin vllm-{vllm.__version__}", run, len(many), lambda: x.float() @ reference.float(), total


def machete(torch, request, copies):
    import vllm
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.quantization.utils.quant_utils import pack_rows, quantize_weights
    from vllm.scalar_type import scalar_types

    n, k, m = request["n"], request["k"], request["m"]
    types = {"w4a16": scalar_types.uint4b8, "w8a16": scalar_types.uint8b128}
    need(request["kind"] in types, "has 4 and 8 bits only")
    kind = types[request["kind"]]
    x = activations(torch, m, k, torch.float16)
    reference, codes, scales, _ = quantize_weights(torch.randn(k, n, device="cuda", dtype=torch.float16), kind, 128)
    packed = pack_rows(codes, kind.size_bits, k, n).t().contiguous().t()
    packed = ops.machete_prepack_B(packed, a_type=x.dtype, b_type=kind, group_scales_type=x.dtype)
    total = packed.numel() * packed.element_size() + scales.numel() * scales.element_size()
    many = [packed] + [packed.clone() for _ in range(copies(total) - 1)]

    def run(copy):
        return ops.machete_mm(a=x, b_q=many[copy], b_type=kind, b_group_scales=scales, b_group_size=128)

    return f"machete vllm-{vllm.__version__}", run, len(many), lambda: x.float() @ reference.float(), total


def gemlite(torch, request, copies):
    import gemlite
    from gemlite.core import DType, GemLiteLinear

    n, k, m = request["n"], request["k"], request["m"]
    bits = {"w2a16": 2, "w4a16": 4, "w8a16": 8}.get(request["kind"])
    need(bits, "has 2, 4 and 8 bits only")
    group = 128
    codes, scales, weights = random_codes(torch, n, k, bits, group)
    zeros = torch.full_like(scales, 2 ** (bits - 1))
    x = activations(torch, m, k, torch.float16)
    total = n * k * bits // 8 + 2 * scales.numel()

    def layer():
        made = GemLiteLinear(
            W_nbits=bits, group_size=group, in_features=k, out_features=n, input_dtype=DType.FP16, output_dtype=DType.FP16
        )
        made.pack(codes.to(torch.uint8), scales, zeros, bias=None)
        return made

    many = [layer() for _ in range(copies(total))]
    who = f"gemlite {getattr(gemlite, '__version__', '?')}"
    return who, lambda copy: many[copy](x), len(many), lambda: x.float() @ weights.t(), total


def bitsandbytes(torch, request, copies):
    import bitsandbytes as bnb
    from bitsandbytes import functional

    n, k, m = request["n"], request["k"], request["m"]
    need(request["kind"] == "w4a16", "has 4 bits only")
    x = activations(torch, m, k, torch.float16)
    weights = torch.randn(n, k, device="cuda", dtype=torch.float16)
    packed, state = functional.quantize_4bit(weights, blocksize=128, quant_type="nf4")
    reference = functional.dequantize_4bit(packed, state)
    total = packed.numel() + 4 * state.absmax.numel()
    many = [packed] + [packed.clone() for _ in range(copies(total) - 1)]

    def run(copy):
        return bnb.matmul_4bit(x, many[copy].t(), quant_state=state)

    return f"bitsandbytes-nf4 {bnb.__version__}", run, len(many), lambda: x.float() @ reference.float().t(), total


WEIGHT_ONLY = [cublas_f16, tinygemm, marlin, machete, gemlite, bitsandbytes]
PEERS = {
    "w4a16": WEIGHT_ONLY + [cublas_bf16],
    "w2a16": [cublas_f16, gemlite],
    "w3a16": [cublas_f16],
    "w8a16": [cublas_f16, marlin, machete, gemlite],
    "fp8": [scaled_mm_tensor, scaled_mm_row, flashinfer_fp8, cublas_f16],
    "int8": [int_mm, cublas_f16],
}


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
        cycled = request["m"] <= CYCLED_ROWS
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


def answer(torch, request):
    rows, skipped = [], {}
    for peer in PEERS[request["kind"]]:
        try:
            rows.append(measure(torch, peer, request))
        except Skip as why:
            skipped[f"{peer.__name__} for {request['kind']} M={request['m']}"] = str(why)
        except Exception as error:  # A peer that breaks must not take the others along.
            skipped[f"{peer.__name__} for {request['kind']} M={request['m']}"] = f"{type(error).__name__}: {error}"[:500]
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
