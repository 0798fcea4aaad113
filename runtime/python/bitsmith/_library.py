"""libbitsmith by ctypes: every function of bitsmith.h with its types, and statuses as exceptions."""

import ctypes
import os
import pathlib
import sys
from ctypes import POINTER, Structure, c_char, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p

ABI_VERSION = 1
STATUSES = {1: "invalid", 2: "unsupported", 3: "tool", 4: "bug", 5: "closed", 6: "abi"}


class Error(RuntimeError):
    """A call that failed: `kind` is invalid, unsupported, tool, bug, closed or abi; the text says what was found and accepted."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


class Want(Structure):
    _fields_ = [
        ("op", c_char_p),
        ("layer", c_char_p),
        ("format", c_char_p),
        ("activation", c_char_p),
        ("n", c_uint64),
        ("k", c_uint64),
    ]


class Argument(Structure):
    _fields_ = [
        ("bytes", c_uint64),
        ("align", c_uint32),
        ("written", c_uint32),
        ("name", c_char * 24),
        ("element", c_char * 16),
    ]


class View(Structure):
    _fields_ = [("buffer", c_uint64), ("offset", c_uint64), ("bytes", c_uint64)]


class KvShape(Structure):
    _fields_ = [
        ("element", c_char_p),
        ("heads", c_uint32),
        ("kv_heads", c_uint32),
        ("k_dim", c_uint32),
        ("v_dim", c_uint32),
        ("page", c_uint32),
    ]


class Attention(Structure):
    _fields_ = [
        ("scale", c_float),
        ("softcap", c_float),
        ("window", c_uint32),
        ("first", c_uint32),
        ("slopes", POINTER(c_float)),
        ("sinks", POINTER(c_float)),
        ("heads", c_size_t),
        ("split", c_uint64),
    ]


_H, _HP, _P, _N = c_uint64, POINTER(c_uint64), c_void_p, c_size_t
_FUNCTIONS = {
    "open": [c_uint32, c_char_p, _HP],
    "adopt": [c_uint32, c_char_p, _P, _P, _HP],
    "synchronize": [_H],
    "close": [_H],
    "describe": [_H, _P, _N, POINTER(_N)],
    "buffer_create": [_H, _N, _HP],
    "buffer_wrap": [_H, _P, _N, _HP],
    "buffer_upload": [_H, _N, _P, _N],
    "buffer_download": [_H, _N, _P, _N],
    "quantize": [c_char_p, c_uint64, c_uint64, _P, _P, _HP],
    "weights_dequantize": [_H, _P, _N],
    "weights_pack": [_H, c_char_p, _P, _N, POINTER(_N)],
    "bundle_open": [_H, c_char_p, _HP],
    "kernel_choose": [_H, POINTER(Want), c_uint64, _HP],
    "kernel_arguments": [_H, POINTER(_N)],
    "kernel_argument": [_H, _N, c_uint64, POINTER(Argument)],
    "launch": [_H, c_uint64, POINTER(View), _N],
    "kv_create": [_H, POINTER(KvShape), POINTER(c_char_p), _N, c_uint64, c_uint64, _HP],
    "kv_scales": [_H, c_uint64, _P, _N],
    "kv_rope": [_H, c_uint32, c_uint32, _P, _N],
    "kv_open": [_H, _HP],
    "kv_end": [_H, c_uint64],
    "kv_truncate": [_H, c_uint64, c_uint64],
    "kv_tokens": [_H, c_uint64, _HP],
    "kv_grow": [_H, _HP, _HP, _N],
    "kv_append": [_H, c_uint64, POINTER(View), POINTER(View)],
    "kv_attend": [_H, c_uint64, POINTER(View), POINTER(View), POINTER(Attention)],
    "kv_dequantize": [_H, c_uint64, c_uint64, c_uint64, c_uint64, POINTER(View), POINTER(View)],
}


def _load():
    name = {"darwin": "libbitsmith.dylib", "win32": "bitsmith.dll"}.get(sys.platform, "libbitsmith.so")
    path = os.environ.get("BITSMITH_LIBRARY") or str(pathlib.Path(__file__).with_name(name))
    library = ctypes.CDLL(path)
    for function, arguments in _FUNCTIONS.items():
        symbol = getattr(library, f"bitsmith_{function}")
        symbol.argtypes, symbol.restype = arguments, c_int32
    library.bitsmith_abi_version.restype = c_uint32
    library.bitsmith_version.restype = c_char_p
    library.bitsmith_last_error.argtypes, library.bitsmith_last_error.restype = [_P, _N], _N
    found = library.bitsmith_abi_version()
    if found != ABI_VERSION:
        raise ImportError(f"{path} has ABI version {found}; this package takes {ABI_VERSION}")
    return library


_LIBRARY = _load()


def version():
    """Version of libbitsmith."""
    return _LIBRARY.bitsmith_version().decode()


def call(function, *arguments):
    """Calls a function of the header, without its prefix; a status that is not 0 is an exception."""
    status = getattr(_LIBRARY, f"bitsmith_{function}")(*arguments)
    if status:
        # The text is this thread's own, so nothing comes between the call and the question.
        room = _LIBRARY.bitsmith_last_error(None, 0)
        text = ctypes.create_string_buffer(room)
        _LIBRARY.bitsmith_last_error(text, room)
        raise Error(STATUSES.get(status, "bug"), text.value.decode(errors="replace"))


def made(function, *arguments):
    """Calls a function whose last argument is a place for a handle or a number; what it holds then."""
    place = c_uint64()
    call(function, *arguments, ctypes.byref(place))
    return place.value


def sized(function, *arguments):
    """Calls a function that copies bytes out: asks for their number first."""
    needed = c_size_t()
    call(function, *arguments, None, 0, ctypes.byref(needed))
    data = ctypes.create_string_buffer(max(needed.value, 1))
    call(function, *arguments, data, needed.value, ctypes.byref(needed))
    return data.raw[: needed.value]
