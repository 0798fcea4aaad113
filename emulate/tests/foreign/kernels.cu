// Kernels that NVIDIA's compiler turns into PTX for the machine: what other compilers write is other PTX than ours.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>

// Tiled product, C = A B, with shared tiles and a ragged edge.
extern "C" __global__ void product(const float *a, const float *b, float *c, int m, int n, int k) {
    __shared__ float ta[16][17], tb[16][17];
    int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * 16 + y, column = blockIdx.x * 16 + x;
    float sum = 0;
    for (int at = 0; at < k; at += 16) {
        ta[y][x] = row < m && at + x < k ? a[row * k + at + x] : 0;
        tb[y][x] = column < n && at + y < k ? b[(at + y) * n + column] : 0;
        __syncthreads();
        for (int i = 0; i < 16; ++i) sum += ta[y][i] * tb[i][x];
#ifndef BROKEN
        __syncthreads();
#endif
    }
    if (row < m && column < n) c[row * n + column] = sum;
}

// Softmax of rows: shuffles, exponentials, a reduction over warps.
extern "C" __global__ void softmax(const __half *in, __nv_bfloat16 *out, int n) {
    __shared__ float partial[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    in += blockIdx.x * n, out += blockIdx.x * n;
    auto reduce = [&](float v, bool maximum) {
        for (int i = 16; i; i /= 2) {
            float other = __shfl_xor_sync(~0u, v, i);
            v = maximum ? fmaxf(v, other) : v + other;
        }
        if (lane == 0) partial[warp] = v;
        __syncthreads();
        v = partial[0];
        for (int i = 1; i < warps; ++i) v = maximum ? fmaxf(v, partial[i]) : v + partial[i];
        __syncthreads();
        return v;
    };
    float most = -INFINITY, sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, __half2float(in[i]));
    most = reduce(most, true);
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += expf(__half2float(in[i]) - most);
    sum = reduce(sum, false);
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = __float2bfloat16(expf(__half2float(in[i]) - most) / sum);
}

// A histogram by shared and global atomics, fed by an asynchronous pipeline of two stages.
extern "C" __global__ void histogram(const uint4 *in, unsigned *bins, int count) {
    __shared__ unsigned local[256];
    __shared__ uint4 stage[2][64];
    for (int i = threadIdx.x; i < 256; i += 64) local[i] = 0;
    int step = gridDim.x * 64, at = blockIdx.x * 64 + threadIdx.x, turn = 0;
    __pipeline_memcpy_async(&stage[0][threadIdx.x], &in[at % count], 16, at < count ? 0 : 16);
    __pipeline_commit();
    __syncthreads();
    for (; at < count; at += step, turn ^= 1) {
        int next = at + step;
        __pipeline_memcpy_async(&stage[turn ^ 1][threadIdx.x], &in[next % count], 16, next < count ? 0 : 16);
        __pipeline_commit();
        __pipeline_wait_prior(1);
        uint4 v = stage[turn][threadIdx.x];
        unsigned words[4] = {v.x, v.y, v.z, v.w};
        for (int w = 0; w < 4; ++w)
            for (int b = 0; b < 4; ++b) atomicAdd(&local[words[w] >> (8 * b) & 255], 1u);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += 64) atomicAdd(&bins[i], local[i]);
}

// A function that is really called, with a structure by value, a local array, 64-bit division and a switch.
struct Rule { int kind; long long scale; };
__device__ __noinline__ long long apply(Rule rule, long long x) {
    long long history[4] = {x, x * 3, x - 7, rule.scale};
    switch (rule.kind) {
    case 0: return history[x & 3] / rule.scale;
    case 1: return history[(x + 1) & 3] % rule.scale;
    case 2: return __popcll(history[1]) + __clzll(history[2]);
    case 3: return __brevll(x) >> 5;
    case 4: return __mul64hi(x, history[3]);
    default: return history[3] ^ x;
    }
}
extern "C" __global__ void rules(const Rule *table, const long long *in, long long *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = apply(table[i % 6], in[i]);
}
