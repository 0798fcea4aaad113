"""Peers that come as Python wheels: a line of JSON in, a line of JSON out.

The first line names a peer and a product (n, k, m, bits, group, copies, threads); the answer says what it is, how many bytes of
weights one product reads, and the squared error of its result relative to the same product in float64. Each line after it,
{"runs": r}, is answered with {"seconds": seconds per product}. {"error": why} answers what cannot be served.
"""

import json
import sys
import time

TYPES = {4: "uint4", 8: "uint8"}


def weights(numpy, seed, request):
    """Codes [n, k], scales [n, k / group] and what they stand for: (code - half) * scale.

    Each copy has a seed of its own: a library may keep equal constants once, and then reads them from a cache.
    """
    n, k, bits, group = (request[key] for key in ("n", "k", "bits", "group"))
    random = numpy.random.default_rng(seed)
    codes = random.integers(0, 2**bits, (n, k), dtype=numpy.uint8)
    scales = random.uniform(0.5, 1.5, (n, k // group)).astype(numpy.float16) / numpy.float16(2 ** (bits - 1) * 16)
    return codes, scales


def expected(numpy, x, codes, scales, bits, rows=8):
    """The first columns of the product, in float64."""
    n, k = codes.shape
    centred = codes[:rows].astype(numpy.float64) - 2 ** (bits - 1)
    values = centred.reshape(rows, scales.shape[1], -1) * scales[:rows].astype(numpy.float64)[:, :, None]
    return x.astype(numpy.float64) @ values.reshape(rows, k).T


def onnxruntime(request):
    """MatMulNBits with accuracy level 4: activations are quantized to int8 per group each time."""
    import numpy
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    n, k, m, bits, group = (request[key] for key in ("n", "k", "m", "bits", "group"))
    nodes, initializers, outputs = [], [], []
    for copy in range(request["copies"]):
        codes, scales = weights(numpy, copy, request)
        packed = codes if bits == 8 else codes[:, 0::2] | codes[:, 1::2] << 4
        initializers.append(numpy_helper.from_array(packed.reshape(n, k // group, group * bits // 8), f"w{copy}"))
        initializers.append(numpy_helper.from_array(scales.astype(numpy.float32).reshape(n, -1), f"s{copy}"))
        nodes.append(
            helper.make_node(
                "MatMulNBits", ["x", f"w{copy}", f"s{copy}"], [f"y{copy}"], domain="com.microsoft",
                K=k, N=n, bits=bits, block_size=group, accuracy_level=4,
            )
        )
        outputs.append(helper.make_tensor_value_info(f"y{copy}", TensorProto.FLOAT, [m, n]))
    x_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [m, k])
    graph = helper.make_graph(nodes, "peers", [x_info], outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = numpy.random.default_rng(7).standard_normal((m, k)).astype(numpy.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    for copy in range(request["copies"]):
        binding.bind_output(f"y{copy}")

    def run():
        session.run_with_iobinding(binding)

    run()
    result = binding.copy_outputs_to_cpu()[0]
    codes, scales = weights(numpy, 0, request)
    return {
        "name": f"onnxruntime {ort.__version__} g{group}",
        "run": run,
        # Scales are float32 there.
        "weight_bytes": n * k * bits / 8 + n * k // group * 4,
        "pair": (result[:, :8], expected(numpy, x, codes, scales, bits)),
    }


def openvino(request):
    """Compressed weights with dynamic quantization of activations in groups of the same size."""
    import numpy
    import openvino as ov
    from openvino import opset13 as ops

    n, k, m, bits, group = (request[key] for key in ("n", "k", "m", "bits", "group"))
    x_node = ops.parameter([m, k], numpy.float32, name="x")
    results = []
    for copy in range(request["copies"]):
        codes, scales = weights(numpy, copy, request)
        shape = [n, k // group, group]
        kind = ov.Type.u4 if bits == 4 else ov.Type.u8
        packed = codes if bits == 8 else codes[:, 0::2] | codes[:, 1::2] << 4
        tensor = ov.Tensor(numpy.ascontiguousarray(packed), shape, kind)
        constant = ops.constant(tensor, shared_memory=False)
        zero = ops.convert(ops.constant(numpy.full((1, 1, 1), 2 ** (bits - 1), numpy.uint8)), "f16")
        value = ops.subtract(ops.convert(constant, "f16"), zero)
        value = ops.multiply(value, ops.constant(scales.reshape(n, k // group, 1)))
        value = ops.reshape(value, numpy.array([n, k]), False)
        product = ops.matmul(x_node, ops.convert(value, "f32"), False, True)
        results.append(ops.result(product))
    core = ov.Core()
    compiled = core.compile_model(
        ov.Model(results, [x_node], "peers"),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": request["threads"],
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
        },
    )
    infer = compiled.create_infer_request()
    x = numpy.random.default_rng(7).standard_normal((m, k)).astype(numpy.float32)
    infer.set_input_tensor(ov.Tensor(x))
    infer.infer()
    result = infer.get_output_tensor(0).data.copy()
    codes, scales = weights(numpy, 0, request)
    return {
        "name": f"openvino {ov.__version__.split('-')[0]} g{group}",
        "run": infer.infer,
        "weight_bytes": n * k * bits / 8 + n * k // group * 2,
        "pair": (result[:, :8], expected(numpy, x, codes, scales, bits)),
    }


PEERS = {"onnxruntime": onnxruntime, "openvino": openvino}


def main():
    answers = sys.stdout
    # What libraries print must not get between the answers.
    sys.stdout = sys.stderr

    def answer(content):
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    request = json.loads(sys.stdin.readline())
    try:
        peer = PEERS[request["peer"]](request)
    except ImportError as error:
        return answer({"error": f"not installed ({error})"})
    except Exception as error:  # Whatever a library raises is why there is no such peer here.
        return answer({"error": f"{type(error).__name__}: {error}"})
    got, wanted = peer["pair"]
    nmse = float(((got - wanted) ** 2).sum() / (wanted**2).sum())
    answer({"name": peer["name"], "weight_bytes": peer["weight_bytes"], "nmse": nmse})
    copies = request["copies"]
    for line in sys.stdin:
        # One run of the model is a product per copy.
        passes = max(1, round(json.loads(line)["runs"] / copies))
        peer["run"]()
        start = time.perf_counter()
        for _ in range(passes):
            peer["run"]()
        answer({"seconds": (time.perf_counter() - start) / passes / copies})


main()
