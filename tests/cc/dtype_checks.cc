// The numbers of element types and operations, their sizes and names, and which goes with which: written out a second
// time, because they cross to Python and stand in fingerprints.
#include <string>

#include "base/dtype.h"
#include "check.h"

namespace dcomm::checks {
namespace {

struct DTypeRow {
  int number;
  const char* name;
  size_t num_bytes;
  const char* ops;  // one letter each: Sum Avg pRod mIn maX and(&) or(|) xor(^) premul(*)
  const char* component;
};

constexpr DTypeRow kRows[] = {
    {0, "float32", 4, "SARIX*", "float32"},   {1, "float16", 2, "SARIX*", "float16"},
    {2, "bfloat16", 2, "SARIX*", "bfloat16"}, {3, "float64", 8, "SARIX*", "float64"},
    {4, "int32", 4, "SRIX&|^", "int32"},      {5, "int64", 8, "SRIX&|^", "int64"},
    {6, "int8", 1, "SRIX&|^", "int8"},        {7, "uint8", 1, "SRIX&|^", "uint8"},
    {8, "bool", 1, "SRIX&|^", "bool"},        {9, "complex64", 8, "SA", "float32"},
    {10, "complex128", 16, "SA", "float64"},
};

constexpr const char* kOpNames[] = {"sum", "avg", "prod", "min", "max", "band", "bor", "bxor", "premul_sum"};
constexpr char kOpLetters[] = "SARIX&|^*";

}  // namespace

CHECK_CASE(dtype_numbers_and_operations) {
  EXPECT_EQ(std::size(kRows), size_t{kNumDTypes});
  EXPECT_EQ(std::size(kOpNames), size_t{kNumReduceOps});
  for (const DTypeRow& row : kRows) {
    const auto dtype = static_cast<DType>(row.number);
    const std::string name = row.name;
    EXPECT_EQ(dtype_name(dtype), name);
    EXPECT_EQ(dtype_bytes(dtype), row.num_bytes);
    EXPECT_EQ(dtype_name(component_of(dtype)), std::string(row.component));
    EXPECT_EQ(is_complex(dtype), name.starts_with("complex"));
    EXPECT_EQ(is_integer(dtype), name.find("int") != std::string::npos);
    EXPECT_EQ(is_floating(dtype), name.find("float") != std::string::npos);
    for (int op = 0; op < kNumReduceOps; ++op) {
      EXPECT_EQ(reduce_op_name(static_cast<ReduceOp>(op)), std::string(kOpNames[op]));
      EXPECT_EQ(is_defined(static_cast<ReduceOp>(op), dtype),
                std::string(row.ops).find(kOpLetters[op]) != std::string::npos);
    }
  }
}

}  // namespace dcomm::checks
