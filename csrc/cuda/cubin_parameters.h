// A kernel's parameters as text, and values packed for a launch. Nothing here needs a driver.
//
// A layout names every parameter in its order, separated by commas:
//     *fp32 *bf16 ...     an address of elements of that type
//     i32 i64 fp32 fp64   a number
//     null                an address that is always null: Triton appends two for scratch memory
// and `/16` behind one says that the kernel was compiled for multiples of 16: bytes of an address, or the number itself.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

namespace esper::cuda {

struct Parameter {
  std::string type;
  int64_t divisor;

  bool address() const { return type[0] == '*'; }
  uint64_t bytes() const { return type == "i32" || type == "fp32" ? 4 : 8; }
};

struct Layout {
  std::vector<Parameter> parameters;
  std::string reason;  // why the text is no layout; empty where it is one
};

inline Layout parse_layout(const std::string& text) {
  Layout layout;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    std::string type = text.substr(at, end - at);
    const size_t slash = std::min(type.find('/'), type.size());
    const bool aligned = type.substr(slash) == "/16";
    const bool whole = aligned || slash == type.size();
    type.resize(slash);
    const bool number = type == "i32" || type == "i64" || (!aligned && (type == "fp32" || type == "fp64"));
    if (!whole || !(number || (type == "null" && !aligned) || (type.size() > 1 && type[0] == '*'))) {
      return {{}, "parameter " + std::to_string(layout.parameters.size()) + " is \"" + text.substr(at, end - at) +
                      "\"; known are *<element type>, i32, i64 (each also with /16), fp32, fp64 and null"};
    }
    layout.parameters.push_back({type, aligned ? 16 : 1});
    at = end + 1;
  }
  return layout;
}

struct Address {
  uint64_t value;
  std::string element;  // its type, as a layout writes it
};

struct Values {
  std::vector<Address> tensors;
  std::vector<int64_t> integers;
  std::vector<double> floats;
};

struct Packed {
  std::vector<uint64_t> words;  // one per parameter, whose bytes are its first ones
  std::string reason;           // why the values do not fit the parameters; empty where they do
};

inline std::string why_not_counted(const char* what, size_t given, size_t wanted) {
  if (given == wanted) return "";
  return std::string(what) + " has " + std::to_string(given) + " entries, the kernel takes " + std::to_string(wanted);
}

inline std::string why_not_number(const Parameter& p, int64_t value, const std::string& name) {
  const std::string said = name + " is " + std::to_string(value);
  using Limits = std::numeric_limits<int32_t>;
  if (p.type == "i32" && (value < Limits::min() || value > Limits::max())) {
    return said + ", which does not fit the kernel's 32-bit parameter";
  }
  return value % p.divisor ? said + "; the kernel was compiled for multiples of 16" : "";
}

inline std::string why_not_address(const Parameter& p, const Address& given, const std::string& name) {
  if (given.element != p.type.substr(1)) {
    return name + " has elements of type " + given.element + ", the kernel takes " + p.type.substr(1);
  }
  const uint64_t past = given.value % static_cast<uint64_t>(p.divisor);
  return past ? name + " begins " + std::to_string(past) +
                    " bytes past a multiple of 16; the kernel was compiled for addresses that are multiples of 16"
              : "";
}

// Values of each kind are taken in their order.
inline Packed pack(const std::vector<Parameter>& parameters, const Values& given) {
  size_t tensors = 0, integers = 0, floats = 0;
  Packed packed;
  for (const Parameter& p : parameters) {
    tensors += p.address();
    integers += p.type[0] == 'i';
    floats += p.type[0] == 'f';
  }
  for (const std::string& reason :
       {why_not_counted("tensors", given.tensors.size(), tensors),
        why_not_counted("integers", given.integers.size(), integers),
        why_not_counted("floats", given.floats.size(), floats)}) {
    if (!reason.empty()) return {{}, reason};
  }
  tensors = integers = floats = 0;
  for (const Parameter& p : parameters) {
    uint64_t word = 0;
    std::string reason;
    if (p.address()) {
      const std::string name = "tensors[" + std::to_string(tensors) + "]";
      const Address& address = given.tensors[tensors++];
      reason = why_not_address(p, address, name);
      word = address.value;
    } else if (p.type[0] == 'i') {
      const std::string name = "integers[" + std::to_string(integers) + "]";
      const int64_t value = given.integers[integers++];
      reason = why_not_number(p, value, name);
      word = static_cast<uint64_t>(value);  // little-endian: the low four bytes are the 32-bit number
    } else if (p.type[0] == 'f') {
      const double value = given.floats[floats++];
      const float narrow = static_cast<float>(value);
      p.type == "fp32" ? std::memcpy(&word, &narrow, 4) : std::memcpy(&word, &value, 8);
    }
    if (!reason.empty()) return {{}, reason};
    packed.words.push_back(word);
  }
  return packed;
}

}  // namespace esper::cuda
