/* bitsmith: quantized kernels for LLM inference, for C and C++.
 *
 *     bitsmith_device device;
 *     bitsmith_bundle bundle;
 *     bitsmith_kernel kernel;
 *     bitsmith_open(BITSMITH_ABI_VERSION, "cpu", &device);
 *     bitsmith_bundle_open(device, "kernels", &bundle);
 *     bitsmith_want want = { .op = "matmul", .layer = "q_proj" };
 *     bitsmith_kernel_choose(bundle, &want, m, &kernel);
 *     bitsmith_launch(kernel, m, views, count);
 *
 * A bundle is a folder that `bitsmith generate` made; where it is used, neither a compiler nor a toolkit is needed.
 *
 * Every function but three returns a status. BITSMITH_OK is 0; after any other, bitsmith_last_error() tells this thread what was
 * found and what would be accepted, and nothing has been changed: an output argument is 0 or untouched.
 *
 * Handles are numbers. 0 is none; none is given twice, so one that is used after it was closed is answered with
 * BITSMITH_CLOSED. All of them are closed by bitsmith_close(), in any order: what one stands for lives on while another needs it.
 * Every function may be called from any thread at any time. Launches on one CPU device take turns.
 *
 * Null, misaligned and short pointers and sizes that do not fit are refused. A pointer that is none of these and yet does not point
 * at what is said of it cannot be known, nor can a bundle that was forged, code, hashes and all: load bundles that you trust.
 */
#ifndef BITSMITH_H
#define BITSMITH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Changes when a function or a structure of this header changes. */
#define BITSMITH_ABI_VERSION 1u

enum {
    BITSMITH_OK = 0,
    BITSMITH_INVALID = 1,     /* the request contradicts itself */
    BITSMITH_UNSUPPORTED = 2, /* the request is sound; a feature is missing here */
    BITSMITH_TOOL = 3,        /* a driver or tool refused what it was given */
    BITSMITH_BUG = 4,         /* a fault of this library */
    BITSMITH_CLOSED = 5,      /* the handle has been closed */
    BITSMITH_ABI = 6          /* this header is of another version than the library */
};

typedef uint64_t bitsmith_device;
typedef uint64_t bitsmith_buffer;
typedef uint64_t bitsmith_weights;
typedef uint64_t bitsmith_bundle;
typedef uint64_t bitsmith_kernel;
typedef uint64_t bitsmith_kv; /* a KV cache */

/* The three that return no status. The text of a failure is cut to `bytes` with a zero byte at its end; what is returned is the
 * room that all of it takes with that byte. */
uint32_t bitsmith_abi_version(void);
const char *bitsmith_version(void);
size_t bitsmith_last_error(char *text, size_t bytes);

/* Devices: "cpu", "cpu:<threads>", "cuda:0", "hip:0", "vulkan:0". */
int32_t bitsmith_open(uint32_t abi_version, const char *name, bitsmith_device *device);
/* The same on a context and a stream of the caller (CUcontext and CUstream, or null and hipStream_t). */
int32_t bitsmith_adopt(uint32_t abi_version, const char *name, void *context, void *stream, bitsmith_device *device);
int32_t bitsmith_synchronize(bitsmith_device device);
/* Closes a handle of any kind. */
int32_t bitsmith_close(uint64_t handle);
/* Describes a handle of any kind as JSON: for a bundle, which target was taken and why; for a kernel, all that its manifest says,
 * and why it was taken. No zero byte is added. `needed` gets the number of bytes; json may be null with bytes 0 to ask for it. */
int32_t bitsmith_describe(uint64_t handle, char *json, size_t bytes, size_t *needed);

/* Memory of a device, with undefined content. */
int32_t bitsmith_buffer_create(bitsmith_device device, size_t bytes, bitsmith_buffer *buffer);
/* The caller's memory as a buffer: at a multiple of 64 on a cpu, memory of the GPU on cuda. It must stay valid until the buffer is
 * closed, and nobody else may touch it during a launch. */
int32_t bitsmith_buffer_wrap(bitsmith_device device, void *memory, size_t bytes, bitsmith_buffer *buffer);
int32_t bitsmith_buffer_upload(bitsmith_buffer buffer, size_t offset, const void *data, size_t bytes);
int32_t bitsmith_buffer_download(bitsmith_buffer buffer, size_t offset, void *data, size_t bytes);

/* A tensor of a quantized matrix as another tool wrote it: "qweight" of GPTQ, "blocks" of GGUF. Elements are named as safetensors
 * does in lower case: u8 i8 i32 i64 f16 bf16 f32 e4m3fn e4m3fnuz e5m2 e5m2fnuz. */
typedef struct {
    const char *name;
    const char *element;
    const void *data;
    size_t bytes;
    const uint64_t *shape; /* outermost first */
    size_t rank;
} bitsmith_part;

/* Quantizes a row-major matrix [n, k] to a format: "int4-g128", "q4_k". importance is null, or weighs the k columns. */
int32_t bitsmith_quantize(const char *format, uint64_t n, uint64_t k, const float *values, const float *importance,
                          bitsmith_weights *weights);
/* Reads a matrix that another tool quantized. */
int32_t bitsmith_weights_import(const char *format, uint64_t n, uint64_t k, const bitsmith_part *parts, size_t count,
                                bitsmith_weights *weights);
/* The numbers that it stands for; count is n * k. */
int32_t bitsmith_weights_dequantize(bitsmith_weights weights, float *values, size_t count);
/* Packs it as a kernel takes it; the name of the packing is in the kernel's description. `needed` as in bitsmith_describe. */
int32_t bitsmith_weights_pack(bitsmith_weights weights, const char *packing, void *out, size_t bytes, size_t *needed);

/* The manifest of a bundle as JSON, checked; no device is needed. `needed` as in bitsmith_describe. */
int32_t bitsmith_bundle_manifest(const char *folder, char *json, size_t bytes, size_t *needed);
/* Opens a bundle for a device. Fails where it was changed, or holds nothing for that device. */
int32_t bitsmith_bundle_open(bitsmith_device device, const char *folder, bitsmith_bundle *bundle);

/* What a kernel is wanted for. Null and 0 do not matter; op may not be null. */
typedef struct {
    const char *op;         /* "matmul", "dequant", "quantize" */
    const char *layer;      /* "q_proj" */
    const char *format;     /* "int4-g128" */
    const char *activation; /* "f16", "int8-token" */
    uint64_t n;
    uint64_t k;
} bitsmith_want;

/* What a kernel takes in a place. */
typedef struct {
    uint64_t bytes; /* for the number of rows that was asked for */
    uint32_t align;
    uint32_t written; /* 1 where the kernel writes it */
    char name[24];    /* "x", "x_scale", "x_sum", "w", "y" */
    char element[16]; /* "f16", "i8"; "u8" for packed weights */
} bitsmith_argument;

/* A range of a buffer; bytes 0 stands for the rest of it. */
typedef struct {
    bitsmith_buffer buffer;
    uint64_t offset;
    uint64_t bytes;
} bitsmith_view;

/* The kernel for m rows, loaded and ready. */
int32_t bitsmith_kernel_choose(bitsmith_bundle bundle, const bitsmith_want *want, uint64_t m, bitsmith_kernel *kernel);
int32_t bitsmith_kernel_arguments(bitsmith_kernel kernel, size_t *count);
int32_t bitsmith_kernel_argument(bitsmith_kernel kernel, size_t place, uint64_t m, bitsmith_argument *argument);
/* Bytes that the library itself uses during a launch. */
int32_t bitsmith_kernel_workspace(bitsmith_kernel kernel, uint64_t m, uint64_t *bytes);
/* Starts it. Number, size, alignment and overlap of the views are checked first. On a GPU it may still run when this returns. */
int32_t bitsmith_launch(bitsmith_kernel kernel, uint64_t m, const bitsmith_view *views, size_t count);

/* KV caches: keys and values of attention in pages, quantized as they are appended. A step of an engine is
 *
 *     bitsmith_kv_grow(cache, requests, tokens, count);              room for new tokens of some requests
 *     for each layer: bitsmith_kv_append(cache, layer, &k, &v);      their keys and values
 *                     bitsmith_kv_attend(cache, layer, &q, &y, 0);   attention of their queries
 *
 * where rows of k, v, q and y are the step's new tokens, request after request. A request is a sequence of tokens; its number is
 * good for its cache alone, is never 0, and is refused after the request has ended. Calls on one cache take turns. */
typedef struct {
    const char *element; /* of keys, values, queries and outputs: "f16", "bf16", "f32" */
    uint32_t heads;      /* query heads: a multiple of the KV heads */
    uint32_t kv_heads;
    uint32_t k_dim; /* channels of a head: of queries and keys */
    uint32_t v_dim; /* and of values */
    uint32_t page;  /* tokens of a page: 16, 32, 64, 128, 256 */
} bitsmith_kv_shape;

/* What is 0 or null is not asked for. */
typedef struct {
    float scale; /* multiplies scores; 0 stands for 1 / sqrt(k_dim) */
    float softcap;
    uint32_t window;     /* a query sees so many of the newest tokens */
    uint32_t first;      /* and so many of the first */
    const float *slopes; /* of a bias by distance, one per query head */
    const float *sinks;  /* scores of learned sinks, one per query head */
    size_t heads;        /* numbers behind slopes and sinks: the query heads */
    uint64_t split;      /* tokens per work item, so that results do not depend on other requests; 0 fits the device */
} bitsmith_attention;

/* A cache with one layer per format ("int8-head", "int4-token", "f16"), pages in each, and room for requests at a time. kernels is a
 * bundle that was generated with --kv, or a device, for which kernels are compiled as they are needed. Closed by bitsmith_close. */
int32_t bitsmith_kv_create(uint64_t kernels, const bitsmith_kv_shape *shape, const char *const *formats, size_t layers,
                           uint64_t pages, uint64_t requests, bitsmith_kv *cache);
/* For formats with scales per tensor or head, before the first append: 4 numbers per KV head, scale and offset of keys, scale and
 * offset of values. */
int32_t bitsmith_kv_scales(bitsmith_kv cache, uint64_t layer, const float *scales, size_t count);
/* Rotates keys as they are appended. The table has for each position the cosines of the rotary / 2 pairs, then their sines. Channels
 * of a pair are neighbours where interleaved is not 0, else rotary / 2 apart. */
int32_t bitsmith_kv_rope(bitsmith_kv cache, uint32_t rotary, uint32_t interleaved, const float *table, size_t count);
/* Opens and ends a request. */
int32_t bitsmith_kv_open(bitsmith_kv cache, uint64_t *request);
int32_t bitsmith_kv_end(bitsmith_kv cache, uint64_t request);
/* Takes back the newest tokens, so that tokens remain. */
int32_t bitsmith_kv_truncate(bitsmith_kv cache, uint64_t request, uint64_t tokens);
int32_t bitsmith_kv_tokens(bitsmith_kv cache, uint64_t request, uint64_t *tokens);
/* Begins a step: room for tokens[i] new tokens of requests[i] in every layer, or an error and no change. */
int32_t bitsmith_kv_grow(bitsmith_kv cache, const uint64_t *requests, const uint64_t *tokens, size_t count);
/* k [rows, kv_heads, k_dim], v [rows, kv_heads, v_dim] */
int32_t bitsmith_kv_append(bitsmith_kv cache, uint64_t layer, const bitsmith_view *k, const bitsmith_view *v);
/* q [rows, heads, k_dim], y [rows, heads, v_dim]; how may be null. Causal. */
int32_t bitsmith_kv_attend(bitsmith_kv cache, uint64_t layer, const bitsmith_view *q, const bitsmith_view *y,
                           const bitsmith_attention *how);
/* Tokens of a request as plain numbers: k [count, kv_heads, k_dim], v [count, kv_heads, v_dim]. */
int32_t bitsmith_kv_dequantize(bitsmith_kv cache, uint64_t layer, uint64_t request, uint64_t start, uint64_t count,
                               const bitsmith_view *k, const bitsmith_view *v);

#ifdef __cplusplus
}
#endif

#endif
