// Many arrays into one and back, with scale and cast in the same pass. Floor: launch.
//
// For arrays that something else is to communicate; dcomm's own all_reduce reads many arrays where they lie.
#pragma once

#include "bucket/chunk_table.h"
#include "exec/host_kernels.h"

namespace dcomm {

/// to[0, arrays.count()) = the arrays, one after the other, each element times `scale` in float32 (f64: in float64) and
/// rounded once; what is converted or scaled has canonical NaNs, the rest its own. Dtypes are equal, or float32 and a
/// half type; `scale` other than 1 is for floats and complex numbers. Throws kInvalidArgument otherwise. `to` shares no
/// memory with the arrays.
void pack_arrays(const ChunkTable& arrays, void* to, DType to_dtype, double scale, const KernelTable& table);

/// The arrays = from[0, arrays.count()), in the same way.
void unpack_arrays(const void* from, DType from_dtype, const ChunkTable& arrays, double scale,
                   const KernelTable& table);

}  // namespace dcomm
