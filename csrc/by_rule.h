// From the number of a rule to its struct in rules.h, on the host and in a kernel; and the list of all of them.
#pragma once
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <type_traits>

#include "rules.h"

#ifdef __CUDACC__
#define LADDER static __host__ __device__ __forceinline__
#else
#define LADDER static inline
#endif

namespace lrnnx {

constexpr int kGiven = -1;  // no rule: coefficients are given

#define RULE(number, name, Kind) +1
constexpr int kRules = LRNNX_RULES(RULE);
#undef RULE

namespace rules {

template <int NUMBER>
struct Numbered;
template <class Kind>
constexpr int kNumber = kGiven;
#define RULE(number, name, Kind)                                                           \
  template <>                                                                              \
  struct Numbered<number> {                                                                \
    using type = Kind;                                                                     \
  };                                                                                       \
  template <>                                                                              \
  inline constexpr int kNumber<Kind> = number;                                             \
  static_assert(Kind::EXPONENTIAL || Kind::GAIN == kOwn, #name ": see the head of rules.h");
LRNNX_RULES(RULE)
#undef RULE

template <int NUMBER>
using Of = typename Numbered<NUMBER>::type;
template <class Kind>
constexpr bool kSplit = !std::is_void_v<typename Kind::Evenly>;

// Questions to a rule, for the ladder below.
template <class Kind>
struct Rational : std::bool_constant<!Kind::EXPONENTIAL> {};
template <class Kind>
struct Impulse : std::bool_constant<Kind::EXPONENTIAL && Kind::GAIN == kUnit> {};
template <class Kind>
struct Split : std::bool_constant<kSplit<Kind>> {};
template <class Kind>
struct Gaining : std::bool_constant<Kind::GAIN != kUnit && !kSplit<Kind>> {};

// Whether the rule of this number is one of which IS holds; run(it) if so. For kernels too.
template <template <class> class IS, class F>
LADDER bool run(int rule, const F& run) {
#define RULE(number, name, Kind)   \
  if constexpr (IS<Kind>::value) { \
    if (rule == number) {          \
      run(Kind{});                 \
      return true;                 \
    }                              \
  }
  LRNNX_RULES(RULE)
#undef RULE
  return false;
}
template <template <class> class IS>
LADDER bool is(int rule) {
  return run<IS>(rule, [](auto) {});
}
// The rule that this one equals where every δ is 1.
LADDER int evenly(int rule) {
  int found = rule;
  run<Split>(rule, [&](auto kind) { found = kNumber<typename decltype(kind)::Evenly>; });
  return found;
}

}  // namespace rules

// run(rule as a type)
template <class F>
void by_rule(int64_t rule, const F& run) {
  switch (rule) {
#define RULE(number, name, Kind) \
  case number: return run(std::integral_constant<int, number>{});
    LRNNX_RULES(RULE)
#undef RULE
  }
  STD_TORCH_CHECK(false, "there are no kernels for rule ", rule);
}

// Found in the file of a library before it is loaded.
#define RULE(number, name, Kind) #number " " #name ", "
__attribute__((used)) inline const char kRuleList[] = "lrnnx rules: " LRNNX_RULES(RULE);
#undef RULE

}  // namespace lrnnx
