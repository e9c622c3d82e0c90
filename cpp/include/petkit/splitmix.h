// SplitMix64 (Steele, Lea and Flood 2014): random bits that are a function of their state alone.
#pragma once

#include <cstdint>

namespace petkit {

constexpr uint64_t splitmix_step = 0x9e3779b97f4a7c15, splitmix_first = 0xbf58476d1ce4e5b9,
                   splitmix_second = 0x94d049bb133111eb;

inline uint64_t splitmix(uint64_t state) {
  state = (state ^ (state >> 30)) * splitmix_first;
  state = (state ^ (state >> 27)) * splitmix_second;
  return state ^ (state >> 31);
}

// A number is kept with probability share / 2**24 when the upper 24 bits lie below share.
constexpr int splitmix_bits = 24;

} // namespace petkit
