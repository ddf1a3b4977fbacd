// The rules of rules.def as an enumeration, a ladder and a list.
#pragma once
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <type_traits>

namespace lrnnx {

enum Rule : int {
  kGiven = -1,  // no rule: coefficients are given
#define RULE(number, name, enumerator) enumerator = number,
#include "rules.def"
#undef RULE
};

constexpr int kRules = 0
#define RULE(number, name, enumerator) +1
#include "rules.def"
#undef RULE
    ;

// run(rule as a type)
template <class F>
void by_rule(int64_t rule, const F& run) {
  switch (rule) {
#define RULE(number, name, enumerator) \
  case number: return run(std::integral_constant<int, number>{});
#include "rules.def"
#undef RULE
  }
  STD_TORCH_CHECK(false, "there are no kernels for rule ", rule);
}

// Found in the file of a library before it is loaded.
#define RULE(number, name, enumerator) #number " " #name ", "
__attribute__((used)) inline const char kRuleList[] =
    "lrnnx rules: "
#include "rules.def"
    ;
#undef RULE

}  // namespace lrnnx
