from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar, Union

import numpy
from numpy.typing import NDArray

class SupportsDlpack(Protocol):
    def __dlpack__(self, *, stream: int | None = ...) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

Tensor = Union[NDArray[Any], SupportsDlpack]
Element = Literal["f16", "bf16", "f32"]
_T = TypeVar("_T", bound=_Handle)

def version() -> str: ...

class Error(RuntimeError):
    kind: Literal["invalid", "unsupported", "tool", "bug", "closed", "abi"]
    def __init__(self, kind: str, message: str) -> None: ...

class _Handle:
    handle: int
    def close(self) -> None: ...
    def describe(self) -> dict[str, Any]: ...
    def __enter__(self: _T) -> _T: ...
    def __exit__(
        self, *_: type[BaseException] | BaseException | TracebackType | None
    ) -> None: ...

class Device(_Handle):
    name: str
    stream: int | None
    def __init__(self, name: str = ..., stream: int | None = ...) -> None: ...
    def synchronize(self) -> None: ...

class Weights(_Handle):
    format: str
    n: int
    k: int
    def __init__(self, handle: int, format: str, n: int, k: int) -> None: ...
    @classmethod
    def quantize(cls, values: Tensor, format: str, importance: Tensor | None = ...) -> Weights: ...
    def dequantize(self) -> NDArray[numpy.float32]: ...
    def pack(self, packing: str) -> bytes: ...

class Argument:
    name: str
    element: str
    bytes: int
    align: int
    written: bool
    def __init__(self, name: str, element: str, bytes: int, align: int, written: bool) -> None: ...

class Bundle(_Handle):
    device: Device
    def __init__(self, device: Device, folder: str) -> None: ...
    def kernel(
        self,
        op: str,
        m: int,
        layer: str | None = ...,
        format: str | None = ...,
        activation: str | None = ...,
        n: int = ...,
        k: int = ...,
    ) -> Kernel: ...

class Kernel(_Handle):
    device: Device
    def __init__(self, device: Device, handle: int) -> None: ...
    def arguments(self, m: int) -> list[Argument]: ...
    def launch(self, m: int, *arrays: Tensor | int) -> None: ...

class Linear:
    bundle: Bundle
    activation: str
    n: int
    k: int
    def __init__(self, bundle: Bundle, weights: Weights, activation: str = ...) -> None: ...
    def __call__(self, x: Tensor, out: Tensor | None = ...) -> Any: ...

class KvCache(_Handle):
    device: Device
    heads: int
    kv_heads: int
    k_dim: int
    v_dim: int
    element: Element
    def __init__(
        self,
        kernels: Bundle | Device,
        formats: Sequence[str],
        heads: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        requests: int,
        page: int = ...,
        v_dim: int | None = ...,
        element: Element = ...,
    ) -> None: ...
    def set_scales(self, layer: int, scales: Tensor) -> None: ...
    def set_rope(self, table: Tensor, interleaved: bool = ...) -> None: ...
    def open(self) -> int: ...
    def end(self, request: int) -> None: ...
    def truncate(self, request: int, tokens: int) -> None: ...
    def tokens(self, request: int) -> int: ...
    def grow(self, step: Mapping[int, int]) -> None: ...
    def append(self, layer: int, k: Tensor, v: Tensor) -> None: ...
    def attend(
        self,
        layer: int,
        q: Tensor,
        out: Tensor | None = ...,
        scale: float = ...,
        softcap: float = ...,
        window: int = ...,
        first: int = ...,
        slopes: Tensor | None = ...,
        sinks: Tensor | None = ...,
        split: int = ...,
    ) -> Any: ...
    def dequantize(
        self, layer: int, request: int, start: int = ..., count: int | None = ...
    ) -> tuple[NDArray[Any], NDArray[Any]]: ...
