"""Arrays in and out: numpy arrays, and what speaks DLPack. They are used where they lie, or copied where that does not suit.

A DLPack capsule is borrowed: it stays unconsumed, so that its own destructor releases the tensor when it goes.
"""

import ctypes
from ctypes import POINTER, Structure, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p

import numpy

from ._library import Error, call, made

# Element by name: code and bits as DLPack has them (0 integers, 1 unsigned, 2 floats, 4 bfloat16), numpy's type that holds the bits.
ELEMENTS = {
    "f16": ((2, 16), numpy.float16),
    "f32": ((2, 32), numpy.float32),
    "bf16": ((4, 16), numpy.uint16),
    "i8": ((0, 8), numpy.int8),
    "i32": ((0, 32), numpy.int32),
    "u8": ((1, 8), numpy.uint8),
}
CPU, CUDA, CUDA_HOST = 1, 2, 3


class _Tensor(Structure):
    # DLTensor of dlpack.h.
    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = c_void_p, [ctypes.py_object, ctypes.c_char_p]


def invalid(message):
    return Error("invalid", message)


class Array:
    """What an array is: where its bytes lie, its shape, and what must live as long as they are used."""

    def __init__(self, value, what, stream=None, written=False):
        self.owner = value
        if isinstance(value, numpy.ndarray):
            self.address, self.shape = value.ctypes.data, value.shape
            self.bytes, self.device_type = value.nbytes, CPU
            kind = {"f": 2, "i": 0, "u": 1}.get(value.dtype.kind)
            self.type = (kind, value.dtype.itemsize * 8)
            if not value.flags.c_contiguous:
                raise invalid(f"{what} is not contiguous; accepted: arrays in row-major order (numpy.ascontiguousarray)")
            if written and not value.flags.writeable:
                raise invalid(f"{what} is read-only; accepted: arrays that may be written")
            return
        if not hasattr(value, "__dlpack__"):
            raise invalid(f"{what} is a {type(value).__name__}; accepted: numpy arrays and what has __dlpack__")
        self.device_type = int(value.__dlpack_device__()[0])
        if self.device_type == CUDA:
            if stream is None:
                raise invalid(f"{what} lies on a GPU; open the device with the stream that it is used on")
            # DLPack's name of the default stream is 1.
            self.capsule = value.__dlpack__(stream=stream or 1)
        elif self.device_type in (CPU, CUDA_HOST):
            self.capsule = value.__dlpack__()
        else:
            raise invalid(f"{what} lies on a device of DLPack's kind {self.device_type}; accepted: CPU and CUDA")
        tensor = _Tensor.from_address(_pointer_of(self.capsule, b"dltensor"))
        self.address = (tensor.data or 0) + tensor.byte_offset
        self.shape = tuple(tensor.shape[: tensor.ndim])
        self.type = (tensor.code, tensor.bits * tensor.lanes)
        expected, count = [], 1
        for extent in reversed(self.shape):
            expected.insert(0, count)
            count *= extent
        self.bytes = count * self.type[1] // 8
        if tensor.strides and any(n > 1 and s != e for n, s, e in zip(self.shape, tensor.strides, expected)):
            raise invalid(f"{what} is not contiguous; accepted: tensors in row-major order")

    def check(self, what, element, shape):
        """Fails where it is not of this type and shape; bfloat16 may also come as its bits."""
        accepted = [ELEMENTS[element][0]] + ([(1, 16), (0, 16)] if element == "bf16" else [])
        if self.type not in accepted:
            raise invalid(f"{what} has elements of DLPack type {self.type}; accepted: {element} {accepted[0]}")
        if shape is not None and self.shape != tuple(shape):
            raise invalid(f"{what} has shape {list(self.shape)}; accepted: {list(shape)}")
        return self


class Lent:
    """A buffer over an array for the time of a call: its own memory where its address suits, else a copy."""

    def __init__(self, device, array, what, written):
        self.array, self.written, self.copied = array, written, False
        on_gpu = device.name.startswith(("cuda", "hip"))
        if array.device_type == CUDA and not on_gpu:
            raise invalid(f"{what} lies on a GPU; {device.name} takes arrays of the CPU")
        direct = array.device_type == CUDA or (device.name.startswith("cpu") and array.address % 64 == 0)
        if array.bytes and direct:
            self.handle = made("buffer_wrap", device.handle, array.address, array.bytes)
            return
        self.copied = True
        self.handle = made("buffer_create", device.handle, max(array.bytes, 1))
        if not written and array.bytes:
            call("buffer_upload", self.handle, 0, array.address, array.bytes)

    def __enter__(self):
        return self.handle

    def __exit__(self, kind, *rest):
        try:
            if kind is None and self.copied and self.written and self.array.bytes:
                call("buffer_download", self.handle, 0, self.array.address, self.array.bytes)
        finally:
            call("close", self.handle)


def like(value, shape, element):
    """An array for results, of the kind of an array that came in: a torch tensor beside torch tensors, else numpy."""
    module = type(value).__module__.split(".")[0]
    if module == "torch":
        import torch

        types = {"f16": torch.float16, "f32": torch.float32, "bf16": torch.bfloat16, "i8": torch.int8}
        return torch.empty(tuple(shape), dtype=types[element], device=value.device)
    return numpy.empty(tuple(shape), ELEMENTS[element][1])
