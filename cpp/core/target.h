// Compiles the functions between BEGIN and END for another instruction set than the rest of the
// build.
//
// Only intrinsics and our own templates in an anonymous namespace may come between: an inline
// function of the standard library compiled here could be the copy that the linker keeps for
// everybody. So every standard header is included before BEGIN, and code in between calls nothing
// of theirs but memcpy.
#pragma once

#define PETKIT_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define PETKIT_TARGET_BEGIN(isa)                                                                   \
  PETKIT_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define PETKIT_TARGET_END PETKIT_PRAGMA(clang attribute pop)
#else
#define PETKIT_TARGET_BEGIN(isa) PETKIT_PRAGMA(GCC push_options) PETKIT_PRAGMA(GCC target(isa))
#define PETKIT_TARGET_END PETKIT_PRAGMA(GCC pop_options)
// GCC's own headers of AVX-512 start from an undefined vector on purpose and are warned about at
// each use.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
