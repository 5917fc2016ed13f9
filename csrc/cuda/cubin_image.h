// What a cubin says of itself, read without a driver: that it is one and whole, and the architecture it is for. The
// driver takes an image as a bare pointer and would read past the end of one that was cut short.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

namespace esper::cuda {

struct ElfHeader {
  uint8_t magic[4], wordsize, order, version, os, os_version, pad[7];
  uint16_t type, machine;
  uint32_t elf_version;
  uint64_t entry, segments_at, sections_at;
  uint32_t flags;
  uint16_t bytes, segment_bytes, segments, section_bytes, sections, names;
};
static_assert(sizeof(ElfHeader) == 64);

struct ElfSection {
  uint32_t name, type;
  uint64_t flags, address, at, bytes;
  uint32_t link, info;
  uint64_t alignment, entry_bytes;
};
static_assert(sizeof(ElfSection) == 64);

constexpr uint16_t kMachineCuda = 190, kMachineAmd = 224;
constexpr uint32_t kNoBits = 8;  // a section that takes no room in the file

struct CubinImage {
  int sm = 0;          // 90 for sm_90
  std::string reason;  // why it is no cubin with that kernel; empty where it is one
};

// True where [at, at + bytes) lies inside `size`.
inline bool inside(uint64_t at, uint64_t bytes, uint64_t size) { return at <= size && bytes <= size - at; }

// The image's architecture, or why it holds no kernel of that name.
inline CubinImage read_cubin(const uint8_t* image, uint64_t size, const std::string& kernel) {
  ElfHeader header;
  if (size < sizeof header) return {0, "it has " + std::to_string(size) + " bytes, an ELF header alone has 64"};
  std::memcpy(&header, image, sizeof header);
  if (std::memcmp(header.magic, "\177ELF", 4) != 0 || header.wordsize != 2 || header.order != 1) {
    return {0, "it does not begin like a 64-bit little-endian ELF file"};
  }
  if (header.machine == kMachineAmd) return {0, "it is code for an AMD GPU (hsaco)"};
  if (header.machine != kMachineCuda) return {0, "it is an ELF file for machine " + std::to_string(header.machine)};
  const uint64_t sections = static_cast<uint64_t>(header.sections) * sizeof(ElfSection);
  const uint64_t segments = static_cast<uint64_t>(header.segments) * header.segment_bytes;
  if (header.section_bytes != sizeof(ElfSection) || header.names >= header.sections ||
      !inside(header.sections_at, sections, size) || !inside(header.segments_at, segments, size)) {
    return {0, "its tables lie outside its " + std::to_string(size) + " bytes: it is cut short or corrupt"};
  }
  const auto section = [&](uint16_t i) {
    ElfSection s;
    std::memcpy(&s, image + header.sections_at + i * sizeof s, sizeof s);
    return s;
  };
  const ElfSection names = section(header.names);
  bool found = false;
  const std::string wanted = ".text." + kernel;
  for (uint16_t i = 0; i < header.sections; ++i) {
    const ElfSection s = section(i);
    if (s.type != kNoBits && !inside(s.at, s.bytes, size)) {
      return {0, "section " + std::to_string(i) + " lies outside its " + std::to_string(size) +
                     " bytes: it is cut short or corrupt"};
    }
    found |= inside(s.name, wanted.size() + 1, names.bytes) && inside(names.at, names.bytes, size) &&
             std::memcmp(image + names.at + s.name, wanted.c_str(), wanted.size() + 1) == 0;
  }
  if (!found) return {0, "it holds no kernel named " + kernel};
  // the layout of the flags changed with version 8 of the format
  return {static_cast<int>(header.os_version >= 8 ? header.flags >> 8 & 0xff : header.flags & 0xff), ""};
}

// Why code for sm_<image> does not run on a device of compute capability major.minor; empty where it does.
inline std::string why_wrong_architecture(int image, int major, int minor) {
  if (image / 10 == major && image % 10 <= minor) return "";
  const std::string device = "sm_" + std::to_string(major * 10 + minor);
  return "it is for sm_" + std::to_string(image) + ", the device is " + device + "; compile it for the device: python " +
         "-m kernels_triton.aot --targets " + device;
}

}  // namespace esper::cuda
