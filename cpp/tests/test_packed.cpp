// The packed layout and its transposition.
#include "check.h"
#include "petkit/packed.h"
#include "petkit/transpose.h"

using namespace petkit;

namespace {

void first_code_lies_in_the_lowest_bits() {
  const uint8_t row[] = {0b11100100, 0b00000001};
  const unsigned two_bits[] = {0, 1, 2, 3, 1};
  for (int i = 0; i < 5; ++i)
    CHECK(read_code(row, i, 2) == two_bits[i], "code %d", i);
  CHECK(read_code(row, 2, 1) == 1, "bit 2");
  CHECK(read_code(row, 1, 4) == 14, "upper nibble");
  CHECK(read_code(row, 1, 8) == 1, "second byte");
}

void rows_end_on_bytes() {
  CHECK(row_bytes(0, 1) == 0 && row_bytes(1, 1) == 1 && row_bytes(8, 1) == 1 &&
            row_bytes(9, 1) == 2,
        "1 bit");
  CHECK(row_bytes(3, 4) == 2 && row_bytes(5, 8) == 5, "4 and 8 bits");
  CHECK(row_bytes(int64_t(1) << 40, 8) == int64_t(1) << 40, "64-bit sizes");
}

void transposing_moves_every_code() {
  for (int bits : {1, 2, 4, 8}) {
    for (int64_t rows : {1, 7, 8, 9, 24}) {
      for (int64_t columns : {1, 7, 8, 63, 64}) {
        const std::vector<uint8_t> packed =
            Random(3).bytes(size_t(rows * row_bytes(columns, bits)));
        std::vector<uint8_t> out(size_t(columns * row_bytes(rows, bits)), 0xff);
        transpose(packed.data(), rows, columns, bits, out.data());
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < columns; ++c)
            CHECK(read_code(out.data() + c * row_bytes(rows, bits), r, bits) ==
                      read_code(packed.data() + r * row_bytes(columns, bits), c, bits),
                  "%d bits, %d rows, %d columns, at %d, %d", bits, int(rows), int(columns), int(r),
                  int(c));
        const int padding = int(row_bytes(rows, bits) * 8 - rows * bits);
        for (int64_t c = 0; padding > 0 && c < columns; ++c)
          CHECK(out[size_t((c + 1) * row_bytes(rows, bits) - 1)] >> (8 - padding) == 0, "padding");
      }
    }
  }
}

} // namespace

int main() {
  first_code_lies_in_the_lowest_bits();
  rows_end_on_bytes();
  transposing_moves_every_code();
  return finish("packed");
}
