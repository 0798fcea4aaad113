"""Peers of matrix products: what other libraries do with weights of few bits, 8-bit floats and bytes.

Each peer: (torch, request, copies) -> (who, run(copy), copies, expected, bytes of weights). `copies(bytes)` tells how many
copies of so many bytes are wanted; a peer makes them by cloning, since values do not change the time.
"""

import ctypes
import os
import shutil

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


def marlin_order(torch):
    """Where the codes of 16 rows by 64 columns go: 32 lanes of four fragments of eight, as Marlin's dequantization takes them."""
    lane, tile = torch.arange(32).view(32, 1, 1), torch.arange(4).view(1, 4, 1)
    code = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    row = 2 * (lane % 4) + torch.tensor([0, 1, 8, 9])[code % 4]
    column = lane // 4 + 8 * (code // 4)
    return (256 * tile + 16 * row + column).reshape(-1)


def marlin_pack(torch, codes, scales):
    """Codes [n, k] and scales [n, k / 128] as Marlin's `Layer.pack` leaves them: words [k / 16, 2 n], scales [k / 128, n]."""
    n, k = codes.shape
    tiles = codes.t().reshape(k // 16, 16, n // 16, 16).permute(0, 2, 1, 3).reshape(-1, 1024)
    tiles = tiles[:, marlin_order(torch).to(codes.device)].reshape(k // 16, 2 * n, 8)
    words = torch.zeros(k // 16, 2 * n, dtype=torch.int32, device=codes.device)
    for place in range(8):
        words |= tiles[:, :, place].to(torch.int32) << 4 * place
    order = torch.arange(64).view(8, 8).t().reshape(-1)
    scales = scales.t().reshape(-1, 64)[:, order.to(codes.device)].reshape(k // 128, n)
    return words, scales.contiguous()


# The original Marlin, github.com/IST-DASLab/marlin: `marlin_cuda` of marlin/marlin_cuda_kernel.cu behind the C entry of
# marlin_entry.cu, which says how to build the library. Weights are in the order of marlin/__init__.py, and the workspace is
# `n / 128 * max_par` zeros, which each launch leaves zero.
def marlin_library(torch, request, copies):
    path = os.environ.get("BITSMITH_MARLIN")
    need(path, "BITSMITH_MARLIN names no library; marlin_entry.cu says how to build one")
    n, k, m = request["n"], request["k"], request["m"]
    need(request["kind"] == "w4a16", "has 4 bits only")
    need(n % 256 == 0 and k % 128 == 0, "takes N in multiples of 256 and K of 128")
    entry = ctypes.CDLL(path).bitsmith_marlin
    pointer, number = ctypes.c_void_p, ctypes.c_int
    entry.argtypes = [pointer] * 4 + [number] * 3 + [pointer, number, number, pointer]
    codes, scales, weights = random_codes(torch, n, k, 4, 128)
    packed, scales = marlin_pack(torch, codes, scales)
    x = activations(torch, m, k, torch.float16)
    out = torch.empty(m, n, device="cuda", dtype=torch.float16)
    workspace = torch.zeros(n // 128 * 16, dtype=torch.int32, device="cuda")
    total = 4 * packed.numel() + 2 * scales.numel()
    many = [packed] + [packed.clone() for _ in range(copies(total) - 1)]

    def run(copy):
        stream = torch.cuda.current_stream().cuda_stream
        code = entry(
            x.data_ptr(), many[copy].data_ptr(), out.data_ptr(), scales.data_ptr(), m, n, k, workspace.data_ptr(), 128,
            torch.cuda.current_device(), stream,
        )
        need(code == 0, f"marlin_cuda returned {code}")
        return out

    return "marlin IST-DASLab", run, len(many), lambda: x.float() @ weights.t(), total


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
    from gemlite.triton_kernels.config import AUTOTUNE

    # From 64 rows on it tries two dozen tiles, a minute and more of compiling; its two default ones are taken instead.
    if AUTOTUNE.GEMM != "default":
        gemlite.set_autotune({"GEMM": "default"})
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
    who = f"gemlite {gemlite.__version__}{' default-tiles' if m >= 64 else ''}"
    return who, lambda copy: many[copy](x), len(many), lambda: x.float() @ weights.t(), total


def humming(torch, request, copies):
    from importlib.metadata import version

    # Its kernels are compiled here; NVRTC needs headers that PyTorch's wheels lack, nvcc brings its own.
    nvcc = shutil.which("nvcc")
    if nvcc:
        os.environ.setdefault("HUMMING_COMPILER", "nvcc")
        os.environ.setdefault("CUDA_HOME", os.path.dirname(os.path.dirname(os.path.realpath(nvcc))))
    from humming.layer import HummingLayer, HummingLayerMethod

    n, k, m = request["n"], request["k"], request["m"]
    bits = int(request["kind"][1])
    layer = HummingLayer(
        shape_n=n, shape_k=k, weight_config={"dtype": f"int{bits}", "group_size": 128}, torch_dtype=torch.float16
    ).cuda()
    # Its own quantizer; what its codes stand for is the reference.
    schema = layer.weight_schema
    tensors = schema.quant_tensor(torch.randn(n, k, device="cuda", dtype=torch.float16), schema, torch.float16)
    weights = schema.dequant_tensors(tensors).float()
    layer.load_from_tensors(tensors)
    layer.transform()
    # The choice that it would make itself; given at once, the kernels of other numbers of rows are not compiled.
    choices = HummingLayerMethod.get_default_tuning_configs(layer)
    choice = next(choice for least, most, choice in choices if least < m <= most)
    x = activations(torch, m, k, torch.float16)
    packed = layer.weight.data
    total = packed.numel() * packed.element_size() + 2 * n * k // 128
    many = [packed] + [packed.clone() for _ in range(copies(total) - 1)]

    def run(copy):
        layer.weight.data = many[copy]
        return layer(x, tuning_config=choice)

    return f"humming {version('humming-kernels')}", run, len(many), lambda: x.float() @ weights.reshape(n, k).t(), total


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


WEIGHT_ONLY = [cublas_f16, tinygemm, marlin_library, marlin, machete, humming, gemlite, bitsandbytes]
PEERS = {
    "w4a16": WEIGHT_ONLY + [cublas_bf16],
    "w2a16": [cublas_f16, humming, gemlite],
    "w3a16": [cublas_f16, humming],
    "w8a16": [cublas_f16, marlin, machete, humming, gemlite],
    "fp8": [scaled_mm_tensor, scaled_mm_row, flashinfer_fp8, cublas_f16],
    "int8": [int_mm, cublas_f16],
}
