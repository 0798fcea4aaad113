"""The installed package against numpy: `python test_bitsmith.py FOLDER`, where the folder holds the bundles W4A16 and W8A8 of 72x256
with KV kernels for 4 heads over 2 of 64 channels, pages of 16 tokens. torch is used where it is installed."""

import ast
import inspect
import pathlib
import sys
import threading
import unittest

import numpy

import bitsmith

FOLDER = pathlib.Path(sys.argv.pop(1))
N, K = 72, 256


class Dlpack:
    """An array that nothing but DLPack says anything of."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **_):
        return self._array.__dlpack__()

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def unaligned(array):
    """The same numbers at an address that is no multiple of 64."""
    room = numpy.empty(array.nbytes + 128, numpy.uint8)
    start = -room.ctypes.data % 64 + 16
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def random(*shape, seed=1):
    return numpy.random.default_rng(seed).uniform(-1, 1, shape)


def attention(q, k, v, position):
    """Plain attention in float64: queries [rows, heads, dim] at the end of tokens [tokens, kv_heads, dim]."""
    rows, heads, dim = q.shape
    group = heads // k.shape[1]
    y = numpy.empty((rows, heads, v.shape[2]))
    for row in range(rows):
        seen = position + row + 1
        for head in range(heads):
            scores = k[:seen, head // group] @ q[row, head] / numpy.sqrt(dim)
            weights = numpy.exp(scores - scores.max())
            y[row, head] = weights / weights.sum() @ v[:seen, head // group]
    return y


class LinearTest(unittest.TestCase):
    def linear(self, recipe, format, activation):
        device = bitsmith.Device("cpu:2")
        bundle = bitsmith.Bundle(device, str(FOLDER / recipe))
        weights = bitsmith.Weights.quantize(random(N, K).astype(numpy.float32), format)
        return bitsmith.Linear(bundle, weights, activation), weights.dequantize().astype(numpy.float64)

    def test_w4a16_against_numpy(self):
        linear, w = self.linear("W4A16", "int4-g128", "f16")
        self.assertLess(abs(w - random(N, K)).max(), 0.08)
        for m in (1, 7, 40):
            x = random(m, K, seed=m).astype(numpy.float16)
            exact = x.astype(numpy.float64) @ w.T
            bound = abs(exact) / 2048 + abs(x).astype(numpy.float64) @ abs(w).T * K / 2**23 + 1e-7
            for given in (x, unaligned(x), Dlpack(x)):
                y = linear(given)
                self.assertEqual((y.dtype, y.shape), (numpy.float16, (m, N)))
                self.assertLessEqual((abs(y - exact) / bound).max(), 1)
            out = unaligned(numpy.zeros((m, N), numpy.float16))
            self.assertIs(linear(x, out=out), out)
            numpy.testing.assert_array_equal(out, linear(x))
            # What comes out goes on by DLPack.
            numpy.testing.assert_array_equal(numpy.from_dlpack(y), y)

    def test_w8a8_against_numpy(self):
        linear, w = self.linear("W8A8", "int8-channel", "int8-token")
        x = random(9, K).astype(numpy.float16)
        scale = abs(x).astype(numpy.float64).max(1, keepdims=True) / 127
        exact = x.astype(numpy.float64) @ w.T
        # Half a step per activation, and the rounding to float16.
        bound = abs(w).sum(1) * scale * 0.51 + abs(exact) / 1024 + 1e-6
        self.assertLessEqual((abs(linear(x) - exact) / bound).max(), 1)

    def test_torch_tensors(self):
        try:
            import torch
        except ImportError:
            self.skipTest("torch is not installed")
        linear, w = self.linear("W4A16", "int4-g128", "f16")
        x = torch.from_numpy(random(5, K).astype(numpy.float16))
        y = linear(x)
        self.assertIsInstance(y, torch.Tensor)
        numpy.testing.assert_array_equal(y.numpy(), linear(x.numpy()))

    def test_threads_share_a_layer(self):
        linear, _ = self.linear("W4A16", "int4-g128", "f16")
        inputs = [random(3, K, seed=seed).astype(numpy.float16) for seed in range(8)]
        expected = [linear(x) for x in inputs]
        wrong = []

        def work(x, y):
            for _ in range(20):
                if not numpy.array_equal(linear(x), y):
                    wrong.append(x)

        threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_a_kernel_by_hand(self):
        device = bitsmith.Device("cpu")
        bundle = bitsmith.Bundle(device, str(FOLDER / "W4A16"))
        kernel = bundle.kernel("matmul", 3, format="int4-g128", n=N, k=K)
        self.assertEqual([a.name for a in kernel.arguments(3)], ["x", "w", "y"])
        w = bitsmith.Weights.quantize(random(N, K).astype(numpy.float32), "int4-g128")
        packed = numpy.frombuffer(w.pack(kernel.describe()["kernel"]["packing"]), numpy.uint8)
        x, y = random(3, K).astype(numpy.float16), numpy.zeros((3, N), numpy.float16)
        kernel.launch(3, x, packed, y)
        self.assertTrue(y.any())
        with self.assertRaisesRegex(bitsmith.Error, "needs"):
            kernel.launch(3, x[:2], packed, y)


class KvTest(unittest.TestCase):
    def attend(self, kernels, format, step_of_codes):
        cache = bitsmith.KvCache(kernels, [format], heads=4, kv_heads=2, head_dim=64, pages=20, requests=2, page=16)
        if step_of_codes and format.endswith("head"):
            cache.set_scales(0, numpy.tile(numpy.float32([step_of_codes, 0]), (2, 2)))
        first, second = cache.open(), cache.open()
        tokens = {first: 0, second: 0}
        put = {request: (numpy.empty((0, 2, 64)), numpy.empty((0, 2, 64))) for request in tokens}
        for turn, step in enumerate([{first: 50, second: 21}, {first: 1, second: 1}, {second: 1}, {first: 1, second: 1}]):
            rows = sum(step.values())
            q = random(rows, 4, 64, seed=turn).astype(numpy.float16)
            k = random(rows, 2, 64, seed=turn + 100).astype(numpy.float16)
            v = random(rows, 2, 64, seed=turn + 200).astype(numpy.float16)
            cache.grow(step)
            cache.append(0, unaligned(k), Dlpack(v))
            y = cache.attend(0, q)
            at = 0
            for request, count in step.items():
                part = slice(at, at + count)
                put[request] = tuple(numpy.concatenate(pair) for pair in zip(put[request], (k[part], v[part])))
                stored = [numbers.astype(numpy.float64) for numbers in cache.dequantize(0, request)]
                for was, held in zip(put[request], stored):
                    self.assertLessEqual(abs(was - held).max(), step_of_codes * 0.51 + 2**-11)
                exact = attention(q[part].astype(numpy.float64), *stored, tokens[request])
                # Gathered numbers are rounded to float16, those that are attended to are not. Queries and weights have 8 bits
                # beside codes of 4.
                self.assertLessEqual(abs(y[part] - exact).max(), 2.5e-2 if format == "int4-head" else 4e-3)
                tokens[request] += count
                self.assertEqual(cache.tokens(request), tokens[request])
                at += count
        cache.truncate(first, 10)
        self.assertEqual(cache.tokens(first), 10)
        cache.end(first)
        with self.assertRaisesRegex(bitsmith.Error, "not open"):
            cache.tokens(first)

    def test_attention_from_a_bundle(self):
        bundle = bitsmith.Bundle(bitsmith.Device("cpu:2"), str(FOLDER / "W4A16"))
        for format, step in (("f16", 0), ("int8-head", 1 / 127), ("int4-head", 1 / 7)):
            with self.subTest(format):
                self.attend(bundle, format, step)

    def test_attention_compiled_here(self):
        self.attend(bitsmith.Device("cpu:1"), "int8-token", 1.01 / 127)


class FaultTest(unittest.TestCase):
    def test_faults_are_exceptions_that_name_them(self):
        with self.assertRaisesRegex(bitsmith.Error, "toaster.*accepted") as caught:
            bitsmith.Device("toaster")
        self.assertEqual(caught.exception.kind, "unsupported")
        device = bitsmith.Device("cpu:1")
        bundle = bitsmith.Bundle(device, str(FOLDER / "W4A16"))
        weights = bitsmith.Weights.quantize(random(N, K).astype(numpy.float32), "int4-g128")
        linear = bitsmith.Linear(bundle, weights)
        for x, words in (
            (random(2, K), "DLPack type"),
            (random(2, K - 1).astype(numpy.float16), r"shape \[2, 255\]"),
            (random(K, 2).astype(numpy.float16).T, "not contiguous"),
            ([[1.0] * K], "list"),
        ):
            with self.assertRaisesRegex(bitsmith.Error, words):
                linear(x)
        locked = numpy.zeros((2, N), numpy.float16)
        locked.flags.writeable = False
        with self.assertRaisesRegex(bitsmith.Error, "read-only"):
            linear(random(2, K).astype(numpy.float16), out=locked)
        with self.assertRaisesRegex(bitsmith.Error, "row 0, column 0"):
            bitsmith.Weights.quantize(numpy.full((2, 128), numpy.nan, numpy.float32), "int4-g128")
        device.close()
        with self.assertRaises(bitsmith.Error):
            device.synchronize()

    def test_stubs_state_what_is_there(self):
        stubs = pathlib.Path(bitsmith.__file__).with_suffix(".pyi")
        classes = {node.name: node for node in ast.parse(stubs.read_text()).body if isinstance(node, ast.ClassDef)}
        for name in bitsmith.__all__:
            thing = getattr(bitsmith, name)
            if not inspect.isclass(thing):
                continue
            stated = {node.name: node for node in classes[name].body if isinstance(node, ast.FunctionDef)}
            own = {n for n, m in vars(thing).items() if callable(m) or isinstance(m, classmethod)}
            public = {n for n in own if not n.startswith("_") or n in ("__init__", "__call__")}
            self.assertEqual(public - set(stated), set(), name)
            for method, node in stated.items():
                arguments = [argument.arg for argument in node.args.args]
                found = list(inspect.signature(inspect.unwrap(getattr(thing, method))).parameters)
                if node.args.vararg:
                    arguments.append(node.args.vararg.arg)
                if isinstance(vars(thing).get(method), classmethod):
                    arguments = arguments[1:]
                self.assertEqual(arguments, found, f"{name}.{method}")


if __name__ == "__main__":
    unittest.main()
