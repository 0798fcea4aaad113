"""Quantized kernels for LLM inference: bundles, packed weights, linear layers and KV caches, over libbitsmith.

Objects close what they hold when they go, or by `close()`; threads may share them.
"""

import ctypes
import json
import os
from contextlib import ExitStack

import numpy

from . import _library
from ._array import Array, Lent, like
from ._library import Error, call, made, sized, version

__all__ = ["Argument", "Bundle", "Device", "Error", "Kernel", "KvCache", "Linear", "Weights", "version"]


def _text(value):
    return None if value is None else os.fsencode(value)


class _Handle:
    """What stands behind a handle of the library."""

    handle = 0

    def close(self):
        """Closes it; what others still use lives on."""
        handle, self.handle = self.handle, 0
        if handle:
            call("close", handle)

    def __del__(self):
        try:
            self.close()
        except Exception:  # Nobody is left to hear of it, as at the end of a program.
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def describe(self):
        """What it is and why it was chosen, as a dictionary."""
        return json.loads(sized("describe", self.handle))


class Device(_Handle):
    """A device by name: `cpu`, `cpu:4`, `cuda:0`, `hip:0`, `vulkan:0`. With `stream`, launches go into that stream of the caller."""

    def __init__(self, name="cpu", stream=None):
        self.name, self.stream = name, stream
        abi = _library.ABI_VERSION
        if stream is None:
            self.handle = made("open", abi, _text(name))
        else:
            self.handle = made("adopt", abi, _text(name), None, ctypes.c_void_p(stream))

    def synchronize(self):
        """Waits for every launch."""
        call("synchronize", self.handle)

    def _in(self, stack, value, what, element, shape):
        array = Array(value, what, self.stream).check(what, element, shape)
        return stack.enter_context(Lent(self, array, what, written=False))

    def _out(self, stack, value, what, element, shape):
        array = Array(value, what, self.stream, written=True).check(what, element, shape)
        return stack.enter_context(Lent(self, array, what, written=True))


class Weights(_Handle):
    """A quantized matrix `[n, k]`."""

    def __init__(self, handle, format, n, k):
        self.handle, self.format, self.n, self.k = handle, format, n, k

    @classmethod
    def quantize(cls, values, format, importance=None):
        """Quantizes a matrix of float32; `importance` weighs its columns."""
        matrix = Array(values, "values").check("values", "f32", None)
        if len(matrix.shape) != 2:
            raise Error("invalid", f"values have shape {list(matrix.shape)}; accepted: [n, k]")
        n, k = matrix.shape
        weigh = None
        if importance is not None:
            weigh = Array(importance, "importance").check("importance", "f32", [k])
        handle = made("quantize", _text(format), n, k, matrix.address, weigh.address if weigh else None)
        return cls(handle, format, n, k)

    def dequantize(self):
        """The numbers that it stands for, float32 `[n, k]`."""
        values = numpy.empty((self.n, self.k), numpy.float32)
        call("weights_dequantize", self.handle, values.ctypes.data, values.size)
        return values

    def pack(self, packing):
        """Its bytes as a kernel takes them; the packing's name is in the kernel's description."""
        return sized("weights_pack", self.handle, _text(packing))


class Argument:
    """What a kernel takes in a place."""

    def __init__(self, name, element, bytes, align, written):
        self.name, self.element, self.bytes, self.align, self.written = name, element, bytes, align, written

    def __repr__(self):
        return f"Argument({self.name}, {self.element}, {self.bytes} bytes)"


class Bundle(_Handle):
    """A folder that `bitsmith generate` made, with the target that serves the device best."""

    def __init__(self, device, folder):
        self.device = device
        self.handle = made("bundle_open", device.handle, _text(folder))

    def kernel(self, op, m, layer=None, format=None, activation=None, n=0, k=0):
        """The kernel for `m` rows; what is None or 0 does not matter."""
        want = _library.Want(_text(op), _text(layer), _text(format), _text(activation), n, k)
        return Kernel(self.device, made("kernel_choose", self.handle, ctypes.byref(want), m))


class Kernel(_Handle):
    """A loaded kernel."""

    def __init__(self, device, handle):
        self.device, self.handle = device, handle

    def arguments(self, m):
        """What it takes for `m` rows, in order."""
        count = ctypes.c_size_t()
        call("kernel_arguments", self.handle, ctypes.byref(count))
        found = []
        for place in range(count.value):
            raw = _library.Argument()
            call("kernel_argument", self.handle, place, m, ctypes.byref(raw))
            found.append(Argument(raw.name.decode(), raw.element.decode(), raw.bytes, raw.align, bool(raw.written)))
        return found

    def launch(self, m, *arrays):
        """Runs it for `m` rows on arrays in the order of its arguments; handles of buffers are taken as they are."""
        with ExitStack() as stack:
            views = (_library.View * len(arrays))()
            for view, array, argument in zip(views, arrays, self.arguments(m)):
                if isinstance(array, int):
                    view.buffer = array
                    continue
                given = Array(array, argument.name, self.device.stream, argument.written)
                view.buffer = stack.enter_context(Lent(self.device, given, argument.name, argument.written))
                # A view says how much there is, so that a short array is refused.
                view.bytes = given.bytes
            call("launch", self.handle, m, views, len(arrays))


class Linear:
    """`y = x @ w.T` with packed weights on a bundle's kernels. Activations are quantized first where the bundle asks for it."""

    def __init__(self, bundle, weights, activation="f16"):
        self.bundle, self.activation, self.n, self.k = bundle, activation, weights.n, weights.k
        self._want = {"format": weights.format, "activation": activation, "n": weights.n, "k": weights.k}
        self._kernels, self._packed = {}, {}
        self._weights = weights

    def _kernel(self, op, m, **want):
        found = self._kernels.get((op, m))
        if found is None:
            kernel = self.bundle.kernel(op, m, **want)
            found = self._kernels[op, m] = (kernel, kernel.arguments(m), kernel.describe()["kernel"])
        return found

    def _weights_for(self, packing):
        """The packed weights in memory of the device, made once per packing."""
        if packing not in self._packed:
            data = self._weights.pack(packing)
            buffer = _Handle()
            buffer.handle = made("buffer_create", self.bundle.device.handle, len(data))
            call("buffer_upload", buffer.handle, 0, data, len(data))
            self._packed[packing] = buffer
        return self._packed[packing].handle

    def __call__(self, x, out=None):
        """`x [m, k]`, in f16 unless the activation is another float; the result `[m, n]` is of the kernel's type."""
        device = self.bundle.device
        array = Array(x, "x", device.stream)
        if len(array.shape) != 2:
            raise Error("invalid", f"x has shape {list(array.shape)}; accepted: [m, {self.k}]")
        m = array.shape[0]
        kernel, arguments, entry = self._kernel("matmul", m, **self._want)
        y = next(argument for argument in arguments if argument.name == "y")
        out = like(x, [m, self.n], y.element) if out is None else out
        with ExitStack() as stack:
            given = {"w": self._weights_for(entry["packing"])}
            given["y"] = device._out(stack, out, "out", y.element, [m, self.n])
            if any(argument.name == "x_scale" for argument in arguments):
                given.update(self._quantized(stack, x, m))
            else:
                element = next(argument.element for argument in arguments if argument.name == "x")
                given["x"] = device._in(stack, x, "x", element, [m, self.k])
            # Where weights are decoded once per launch, they need a place until it has ended.
            for argument in arguments:
                if argument.name == "decoded":
                    given["decoded"] = made("buffer_create", device.handle, argument.bytes)
                    stack.callback(call, "close", given["decoded"])
            missing = [argument.name for argument in arguments if argument.name not in given]
            if missing:
                raise Error("unsupported", f"the kernel takes {', '.join(missing)} too; launch it by hand")
            views = (_library.View * len(arguments))(*[(given[argument.name], 0, 0) for argument in arguments])
            call("launch", kernel.handle, m, views, len(arguments))
        return out

    def _quantized(self, stack, x, m):
        """Codes, scales and sums of activations, in buffers that live until the launch."""
        device = self.bundle.device
        kernel, arguments, entry = self._kernel("quantize", m, activation=self.activation, k=self.k)
        given = {"x": device._in(stack, x, "x", entry["input"], [m, self.k])}
        for argument in arguments:
            if argument.written:
                given[argument.name] = made("buffer_create", device.handle, argument.bytes)
                stack.callback(call, "close", given[argument.name])
        views = (_library.View * len(arguments))(*[(given[argument.name], 0, 0) for argument in arguments])
        call("launch", kernel.handle, m, views, len(arguments))
        names = {"codes": "x", "scale": "x_scale", "sum": "x_sum"}
        return {names[name]: handle for name, handle in given.items() if name in names}


class KvCache(_Handle):
    """Quantized keys and values of attention in pages: a layer per format. `kernels` is a bundle that was generated with `--kv`, or
    a device, for which kernels are compiled as they are needed."""

    def __init__(self, kernels, formats, heads, kv_heads, head_dim, pages, requests, page=64, v_dim=None, element="f16"):
        self.device = kernels.device if isinstance(kernels, Bundle) else kernels
        self.heads, self.kv_heads, self.k_dim, self.v_dim = heads, kv_heads, head_dim, v_dim or head_dim
        self.element, self._rows = element, 0
        shape = _library.KvShape(_text(element), heads, kv_heads, self.k_dim, self.v_dim, page)
        names = (ctypes.c_char_p * len(formats))(*[_text(name) for name in formats])
        self.handle = made(
            "kv_create", kernels.handle, ctypes.byref(shape), names, len(formats), pages, requests
        )

    def set_scales(self, layer, scales):
        """`[kv_heads, 4]` of float32 for formats with scales per tensor or head: scale and offset of keys, then of values."""
        array = Array(scales, "scales").check("scales", "f32", [self.kv_heads, 4])
        call("kv_scales", self.handle, layer, array.address, 4 * self.kv_heads)

    def set_rope(self, table, interleaved=False):
        """Rotates keys as they are appended: `table [positions, rotary]` of float32, cosines of the pairs, then sines."""
        array = Array(table, "table").check("table", "f32", None)
        if len(array.shape) != 2:
            raise Error("invalid", f"table has shape {list(array.shape)}; accepted: [positions, rotary]")
        call("kv_rope", self.handle, array.shape[1], int(interleaved), array.address, array.shape[0] * array.shape[1])

    def open(self):
        """A new request: its number."""
        return made("kv_open", self.handle)

    def end(self, request):
        """Ends a request; its pages are free."""
        call("kv_end", self.handle, request)

    def truncate(self, request, tokens):
        """Takes back the newest tokens, so that so many remain."""
        call("kv_truncate", self.handle, request, tokens)

    def tokens(self, request):
        """Tokens of a request."""
        return made("kv_tokens", self.handle, request)

    def grow(self, step):
        """Begins a step: room for `step[request]` new tokens of each request, or an error and no change. Rows of the calls of a
        step are those tokens, request after request, in the order of the dictionary."""
        requests = (ctypes.c_uint64 * len(step))(*step.keys())
        tokens = (ctypes.c_uint64 * len(step))(*step.values())
        call("kv_grow", self.handle, requests, tokens, len(step))
        self._rows = sum(step.values())

    def append(self, layer, k, v):
        """Stores the step's keys `[rows, kv_heads, k_dim]` and values `[rows, kv_heads, v_dim]`."""
        with ExitStack() as stack:
            views = [_library.View(), _library.View()]
            for view, array, what, dim in zip(views, (k, v), "kv", (self.k_dim, self.v_dim)):
                view.buffer = self.device._in(stack, array, what, self.element, [self._rows, self.kv_heads, dim])
            call("kv_append", self.handle, layer, ctypes.byref(views[0]), ctypes.byref(views[1]))

    def attend(self, layer, q, out=None, scale=0.0, softcap=0.0, window=0, first=0, slopes=None, sinks=None, split=0):
        """Attention of the step's queries `[rows, heads, k_dim]`, causal: `[rows, heads, v_dim]`. A scale of 0 is
        `1 / sqrt(k_dim)`; the other options are not asked for where they are 0 or None."""
        how = _library.Attention(scale, softcap, window, first, None, None, self.heads, split)
        kept = []
        for field, values in (("slopes", slopes), ("sinks", sinks)):
            if values is not None:
                kept.append(Array(values, field).check(field, "f32", [self.heads]))
                setattr(how, field, ctypes.cast(kept[-1].address, ctypes.POINTER(ctypes.c_float)))
        shape = [self._rows, self.heads, self.v_dim]
        out = like(q, shape, self.element) if out is None else out
        with ExitStack() as stack:
            views = [_library.View(), _library.View()]
            views[0].buffer = self.device._in(stack, q, "q", self.element, [self._rows, self.heads, self.k_dim])
            views[1].buffer = self.device._out(stack, out, "out", self.element, shape)
            call("kv_attend", self.handle, layer, ctypes.byref(views[0]), ctypes.byref(views[1]), ctypes.byref(how))
        return out

    def dequantize(self, layer, request, start=0, count=None):
        """Keys and values of tokens of a request as plain numbers: numpy arrays `[count, kv_heads, dim]`."""
        count = self.tokens(request) - start if count is None else count
        arrays = [like(None, [count, self.kv_heads, dim], self.element) for dim in (self.k_dim, self.v_dim)]
        with ExitStack() as stack:
            views = [_library.View(), _library.View()]
            for view, array in zip(views, arrays):
                view.buffer = self.device._out(stack, array, "out", self.element, None)
            call(
                "kv_dequantize", self.handle, layer, request, start, count, ctypes.byref(views[0]), ctypes.byref(views[1])
            )
        return tuple(arrays)
