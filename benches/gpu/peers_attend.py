"""Peers of decode attention: one query per request over a cache of many tokens; the protocol is that of `peers_matmul`.

A request is {"kind": "attend", "kv", "batch", "context", "heads", "kv_heads", "head_dim", "page"} with what every request has.
"""

import math

from peers_matmul import need


def cache(torch, request, dtype):
    """Queries [batch, heads, 1, dim] in f16; K and V [batch, kv_heads, context, dim]."""
    batch, dim = request["batch"], request["head_dim"]
    q = torch.randn(batch, request["heads"], 1, dim, device="cuda", dtype=torch.float16)
    shape = (batch, request["kv_heads"], request["context"], dim)
    k, v = (torch.randn(shape, device="cuda", dtype=torch.float16).to(dtype) for _ in range(2))
    return q, k, v


def reference(torch, q, k, v):
    """Attention in f32, request by request: all of K in f32 is many times what a kernel reads."""
    out = torch.empty_like(q, dtype=torch.float32)
    for index in range(q.shape[0]):
        rows = q[index].float().reshape(k.shape[1], -1, q.shape[-1])
        scores = rows @ k[index].float().transpose(1, 2) / math.sqrt(q.shape[-1])
        out[index] = (scores.softmax(-1) @ v[index].float()).reshape(q.shape[1:])
    return out


def bytes_of(*tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def sdpa(backend, rows):
    """PyTorch's attention by one of its backends. With `rows`, the query heads of a KV head are rows of one product, which
    says the same without a mask and spares reading K and V once per query head."""

    def peer(torch, request, copies):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        need(request["kv"] == "f16", "has 16 bits only")
        need(hasattr(SDPBackend, backend), f"{backend} is not in this PyTorch")
        q, k, v = cache(torch, request, torch.float16)
        many = [(k, v)] + [(k.clone(), v.clone()) for _ in range(copies(bytes_of(k, v)) - 1)]
        heads = (request["batch"], request["heads"], 1, request["head_dim"])
        asked = q.view(heads[0], request["kv_heads"], -1, heads[3]) if rows else q
        attend = torch.nn.functional.scaled_dot_product_attention

        def run(copy):
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return attend(asked, *many[copy], enable_gqa=not rows).view(heads)

        name = f"sdpa {backend.split('_')[0].lower()}{' rows' if rows else ''} torch-{torch.__version__}"
        return name, run, len(many), lambda: reference(torch, q, k, v), bytes_of(k, v)

    peer.__name__ = f"sdpa_{backend.split('_')[0].lower()}{'_rows' if rows else ''}"
    return peer


def flashinfer_decode(torch, request, copies, backend):
    """FlashInfer over pages: its decode kernel without matrix instructions, or one of its prefill kernels."""
    import flashinfer

    types = {"f16": torch.float16, "fp8e4m3-head": torch.float8_e4m3fn}
    need(request["kv"] in types, "has 16 bits and 8-bit floats only")
    dtype, page, batch = types[request["kv"]], request["page"], request["batch"]
    pages = request["context"] // page
    need(pages * page == request["context"], "the context is no whole pages")
    q, k, v = cache(torch, request, dtype)

    def paged(x):
        """[batch, kv_heads, context, dim] as pages of [page, kv_heads, dim]."""
        x = x.view(torch.uint8) if x.element_size() == 1 else x
        return x.transpose(1, 2).contiguous().view(batch * pages, page, request["kv_heads"], -1).view(dtype)

    first = (paged(k), paged(v))
    many = [first] + [tuple(x.clone() for x in first) for _ in range(copies(bytes_of(*first)) - 1)]
    space = torch.empty(512 * 2**20, dtype=torch.uint8, device="cuda")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        space, "NHD", use_tensor_cores=backend is not None, backend=backend or "auto"
    )
    ints = {"dtype": torch.int32, "device": "cuda"}
    wrapper.plan(
        torch.arange(0, batch * pages + 1, pages, **ints), torch.arange(batch * pages, **ints),
        torch.full((batch,), page, **ints), request["heads"], request["kv_heads"], request["head_dim"], page,
        q_data_type=torch.float16, kv_data_type=dtype,
    )
    asked = q[:, :, 0].contiguous()
    name = f"flashinfer {flashinfer.__version__} {backend or 'decode'}"

    def run(copy):
        return wrapper.run(asked, many[copy])

    return name, run, len(many), lambda: reference(torch, q, k, v)[:, :, 0], bytes_of(k, v)


def flashinfer_vector(torch, request, copies):
    return flashinfer_decode(torch, request, copies, None)


def flashinfer_fa2(torch, request, copies):
    return flashinfer_decode(torch, request, copies, "fa2")


def flashinfer_fa3(torch, request, copies):
    need(request["kv"] == "f16", "has one type for queries and cache")
    return flashinfer_decode(torch, request, copies, "fa3")


BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
PEERS = {
    "attend": [
        *(sdpa(backend, rows) for rows in (False, True) for backend in BACKENDS),
        flashinfer_vector,
        flashinfer_fa2,
        flashinfer_fa3,
    ]
}
