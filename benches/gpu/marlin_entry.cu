// A C entry to Marlin for `peers_matmul.py`; the kernel itself is not here. From github.com/IST-DASLab/marlin take
// marlin/marlin_cuda_kernel.cu, and build the library that the variable BITSMITH_MARLIN names:
//
//   nvcc -O3 -std=c++17 --expt-relaxed-constexpr -w --shared -Xcompiler -fPIC -cudart static \
//        -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a \
//        -DMARLIN_SOURCE='"/path/to/marlin_cuda_kernel.cu"' -o libmarlin.so marlin_entry.cu
#include MARLIN_SOURCE

// y[m, n] = x[m, k] times weights of 4 bits, all on `stream`. 0, or Marlin's own code, or 1000 times that of CUDA.
extern "C" int bitsmith_marlin(const void* x, const void* weights, void* y, void* scales, int m, int n, int k,
                               void* workspace, int group, int device, cudaStream_t stream) {
    int code = marlin_cuda(x, weights, y, scales, m, n, k, workspace, group, device, stream);
    return code != 0 ? code : 1000 * static_cast<int>(cudaGetLastError());
}
