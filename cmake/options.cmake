# Flags that every target shares, on the interface target `fathom_options`.
add_library(fathom_options INTERFACE)
target_include_directories(fathom_options INTERFACE ${PROJECT_SOURCE_DIR}/src)
target_compile_options(fathom_options INTERFACE -Wall -Wextra -Wshadow -Wno-missing-field-initializers)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(fathom_options INTERFACE -Wno-restrict)  # g++ 12 warns about correct string concatenations (bug 105651)
endif()
if(FATHOM_WERROR)
  target_compile_options(fathom_options INTERFACE -Werror)
endif()
# Results must not depend on the compiler's mood: no reassociation, and one choice about fused multiply-add.
target_compile_options(fathom_options INTERFACE -ffp-contract=fast -fno-math-errno)
if(FATHOM_SANITIZE)
  target_compile_options(fathom_options INTERFACE -fsanitize=${FATHOM_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(fathom_options INTERFACE -fsanitize=${FATHOM_SANITIZE})
endif()
if(FATHOM_SANITIZE OR CMAKE_BUILD_TYPE STREQUAL "Debug")
  target_compile_definitions(fathom_options INTERFACE _GLIBCXX_ASSERTIONS)
endif()

# Against what hostile files might find in spite of all checks, as Debian builds its packages: for all but the kernels, which see
# checked sizes alone and are the ones that must be fast.
add_library(fathom_hardening INTERFACE)
if(NOT FATHOM_SANITIZE)
  target_compile_options(fathom_hardening INTERFACE -fstack-protector-strong)
  if(CMAKE_BUILD_TYPE MATCHES "^(Release|RelWithDebInfo|MinSizeRel)$")  # needs optimization
    target_compile_options(fathom_hardening INTERFACE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
  endif()
endif()
target_link_options(fathom_hardening INTERFACE -Wl,-z,relro,-z,now)
include(CheckPIESupported)
check_pie_supported(LANGUAGES CXX)  # else CMAKE_POSITION_INDEPENDENT_CODE would leave linking to the compiler's default

find_program(FATHOM_CCACHE ccache)
if(FATHOM_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${FATHOM_CCACHE})
endif()

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(simdjson REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)

# fathom_room(base LIBRARIES a b): the static library fathom_base from the folder's sources.
function(fathom_room name)
  cmake_parse_arguments(ROOM "" "" "LIBRARIES" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*.cc)
  add_library(fathom_${name} STATIC ${sources})
  target_link_libraries(fathom_${name} PUBLIC fathom_options fathom_hardening ${ROOM_LIBRARIES})
endfunction()

# fathom_kernels(ops): compiles ops/cpu/*.cc once per instruction set into fathom_ops (see src/ops/cpu/isa.h).
function(fathom_kernels room)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${room}/cpu/*.cc)
  # Norms round products before they are added, as the reference does.
  set_source_files_properties(${CMAKE_CURRENT_SOURCE_DIR}/${room}/cpu/norm.cc PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
  set(isas baseline)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    set(isas baseline avx2 avx512)
  endif()
  set(flags_avx2 -mavx2 -mfma -mf16c -mbmi2)
  set(flags_avx512 ${flags_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512)
  foreach(isa ${isas})
    add_library(fathom_${room}_${isa} OBJECT ${sources})
    target_compile_definitions(fathom_${room}_${isa} PRIVATE FATHOM_ISA_NAMESPACE=${isa})
    target_compile_options(fathom_${room}_${isa} PRIVATE ${flags_${isa}} -O3 -fno-exceptions -fno-rtti -Wno-psabi)
    target_link_libraries(fathom_${room}_${isa} PRIVATE fathom_options)
    target_sources(fathom_${room} PRIVATE $<TARGET_OBJECTS:fathom_${room}_${isa}>)
  endforeach()
endfunction()

# fathom_tests(ops LIBRARIES fathom_ops): tests/ops/*_test.cc as one program, each test known to ctest.
function(fathom_tests name)
  cmake_parse_arguments(TESTS "" "" "LIBRARIES" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*.cc)
  add_executable(${name}_test ${sources})
  target_link_libraries(${name}_test PRIVATE ${TESTS_LIBRARIES} fathom_options GTest::gmock GTest::gtest_main)
  target_include_directories(${name}_test PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(${name}_test PRIVATE FATHOM_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data")
  gtest_discover_tests(${name}_test TEST_PREFIX ${name}. DISCOVERY_MODE PRE_TEST PROPERTIES TIMEOUT 600)
endfunction()
