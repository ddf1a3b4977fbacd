// Asynchronous copies into shared memory, and words that blocks hand to each other through global memory.
//
//   16 bytes in global memory    at first             block 1 publishes        block 0 peeks
//                                | ff ff ff ff |  ->  | 0.5 0 1.25 -2 |   ->   no number is "not yet" any more: ready
//                                all "not yet"        one store                else it peeks again
#pragma once
#include "value.cuh"

namespace lrnnx::cuda {

DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Copies 16 bytes or one number, or writes zeros where not ok; the source address must be valid in either case.
DEVICE void copy16(uint32_t to, const void* from, bool ok) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(ok ? 16 : 0) : "memory");
}
template <class S>
DEVICE void copy_one(S* to, const S* from, bool ok) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;"
               ::"r"(shared_address(to)), "l"(from), "r"(ok ? int(sizeof(S)) : 0), "n"(sizeof(S)) : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// A published word is its own flag: all ones means "not yet". So no fence is needed, and 16-byte accesses may tear.
constexpr uint32_t kNotYet = ~0u;

DEVICE uint4 peek(const void* p) {
  uint4 u;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(u.x), "=r"(u.y), "=r"(u.z), "=r"(u.w) : "l"(p) : "memory");
  return u;
}
DEVICE bool ready(const uint4& u) {
  return u.x != kNotYet && u.y != kNotYet && u.z != kNotYet && u.w != kNotYet;
}
// A value with a word of all ones becomes its neighbour: another NaN, or the last bit of a double.
DEVICE void publish(void* p, const void* value) {
  uint32_t w[4];
  UNROLL for (int i = 0; i < 4; i++) {
    w[i] = static_cast<const uint32_t*>(value)[i];
    if (w[i] == kNotYet) w[i]--;
  }
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1,%2,%3,%4};"
               ::"l"(p), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
}

}  // namespace lrnnx::cuda
