// What csrc/cuda says of an image, an architecture and a launch's values, where there is no driver.
//   image FILE KERNEL | arch IMAGE MAJOR MINOR | pack LAYOUT [t:ADDRESS:ELEMENT | i:NUMBER | f:NUMBER]...
#include <cstdio>
#include <fstream>
#include <iterator>

#include "../../csrc/cuda/cubin_image.h"
#include "../../csrc/cuda/cubin_parameters.h"

using namespace esper::cuda;

static int say(const std::string& text) { return std::puts(text.c_str()) < 0; }

int main(int count, char** words) {
  const std::string what = words[1];
  if (what == "image") {
    std::ifstream file(words[2], std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    const CubinImage image = read_cubin(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), words[3]);
    return say(image.reason.empty() ? std::to_string(image.sm) : image.reason);
  }
  if (what == "arch") {
    return say(why_wrong_architecture(std::stoi(words[2]), std::stoi(words[3]), std::stoi(words[4])));
  }
  const Layout layout = parse_layout(words[2]);
  if (!layout.reason.empty()) return say(layout.reason);
  Values values;
  for (int i = 3; i < count; ++i) {
    const std::string word = words[i], rest = word.substr(2);
    if (word[0] == 't') values.tensors.push_back({std::stoull(rest), rest.substr(rest.find(':') + 1)});
    if (word[0] == 'i') values.integers.push_back(std::stoll(rest));
    if (word[0] == 'f') values.floats.push_back(std::stod(rest));
  }
  const Packed packed = pack(layout.parameters, values);
  if (!packed.reason.empty()) return say(packed.reason);
  std::string text;
  for (size_t i = 0; i < packed.words.size(); ++i) {
    const auto first = reinterpret_cast<const uint8_t*>(&packed.words[i]);
    for (uint64_t b = 0; b < layout.parameters[i].bytes(); ++b) {
      char hex[3];
      std::snprintf(hex, sizeof hex, "%02x", first[b]);
      text += hex;
    }
    text += ' ';
  }
  return say(text);
}
