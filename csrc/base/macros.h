// Compiler differences in one place. Floor: base (no CUDA header, no threads).
#pragma once

#if defined(__CUDACC__)
#define DCOMM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DCOMM_HOST_DEVICE inline
#endif

/// For what files of different instruction sets include: no copy that the linker could keep for all of them.
#if defined(__CUDACC__)
#define DCOMM_ALWAYS_INLINE DCOMM_HOST_DEVICE
#else
#define DCOMM_ALWAYS_INLINE inline __attribute__((always_inline))
#endif

#if defined(__CUDA_ARCH__)
#define DCOMM_UNROLL _Pragma("unroll")
#else
#define DCOMM_UNROLL
#endif

#define DCOMM_LIKELY(x) __builtin_expect(!!(x), 1)
#define DCOMM_UNLIKELY(x) __builtin_expect(!!(x), 0)
