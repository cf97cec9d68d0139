# Cross compiling for 64-bit Arm on Debian, preset `aarch64`:
#   apt-get install g++-aarch64-linux-gnu qemu-user-static
#   scripts/aarch64_sysroot.sh
#   cmake --preset aarch64 && cmake --build --preset aarch64 && ctest --preset aarch64
# The compiler brings its own C and C++ libraries; the sysroot has the others, and all of them for the emulator. ctest leaves out
# the death tests: for those a program starts itself anew, which the kernel does not know how to do.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

get_filename_component(project_folder "${CMAKE_CURRENT_LIST_DIR}" DIRECTORY)
set(FATHOM_SYSROOT "${project_folder}/build/aarch64-sysroot" CACHE PATH "Where scripts/aarch64_sysroot.sh unpacked")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES FATHOM_SYSROOT)
if(NOT EXISTS "${FATHOM_SYSROOT}/usr/include")
  message(FATAL_ERROR "no arm64 libraries in ${FATHOM_SYSROOT}: run scripts/aarch64_sysroot.sh first")
endif()
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH "${FATHOM_SYSROOT}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${FATHOM_SYSROOT}")
set(ENV{PKG_CONFIG_LIBDIR} "${FATHOM_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig:${FATHOM_SYSROOT}/usr/share/pkgconfig")
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -L "${FATHOM_SYSROOT}")
