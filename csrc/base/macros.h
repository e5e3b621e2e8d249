// Compiler differences in one place. Floor: base (no CUDA header, no threads).
#pragma once

#if defined(__CUDACC__)
#define DCOMM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DCOMM_HOST_DEVICE inline
#endif

#if defined(__CUDA_ARCH__)
#define DCOMM_UNROLL _Pragma("unroll")
#else
#define DCOMM_UNROLL
#endif

#define DCOMM_LIKELY(x) __builtin_expect(!!(x), 1)
#define DCOMM_UNLIKELY(x) __builtin_expect(!!(x), 0)
