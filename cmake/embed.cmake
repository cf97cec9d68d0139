# fathom_embed(fathom_ROOM NAME=FILE ...): files as they are, in the program: embedded_file("NAME") of ROOM/embedded.h finds them.
function(fathom_embed target)
  string(REPLACE fathom_ "" room ${target})
  set(out ${CMAKE_CURRENT_BINARY_DIR}/${target}_files.cc)
  set(data "")
  set(table "")
  set(files "")
  set(i 0)
  foreach(pair ${ARGN})
    string(REGEX MATCH "^([^=]+)=(.+)$" whole ${pair})
    set(name ${CMAKE_MATCH_1})
    set(file ${CMAKE_MATCH_2})
    string(APPEND data "asm(\".section .rodata\\nfile_${i}: .incbin \\\"${file}\\\"\\nfile_${i}_end: .byte 0\\n.previous\");\n"
                       "extern \"C\" const char file_${i}[], file_${i}_end[];\n")
    string(APPEND table "    {\"${name}\", {file_${i}, static_cast<size_t>(file_${i}_end - file_${i})}},\n")
    list(APPEND files ${file})
    math(EXPR i "${i} + 1")
  endforeach()
  file(CONFIGURE OUTPUT ${out} @ONLY CONTENT "// What ${target} holds, by cmake/embed.cmake.
#include \"${room}/embedded.h\"

${data}
namespace fathom::${room} {

std::string_view embedded_file(std::string_view name) {
  static const std::pair<std::string_view, std::string_view> files[] = {
${table}  };
  for (const auto& [known, content] : files) {
    if (known == name) return content;
  }
  return {};
}

}  // namespace fathom::${room}
")
  set_source_files_properties(${out} PROPERTIES OBJECT_DEPENDS "${files}" SKIP_UNITY_BUILD_INCLUSION ON)
  target_sources(${target} PRIVATE ${out})
endfunction()
