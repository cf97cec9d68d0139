# Adds the page and the libraries that it needs, Debian's, to `embedded` (src/serve/page/README.md).
file(GLOB own CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/serve/page/*.html ${CMAKE_CURRENT_SOURCE_DIR}/serve/page/*.css
     ${CMAKE_CURRENT_SOURCE_DIR}/serve/page/*.js ${CMAKE_CURRENT_SOURCE_DIR}/serve/page/*.txt)
foreach(file ${own})
  get_filename_component(name ${file} NAME)
  list(APPEND embedded /${name}=${file})
endforeach()

function(page_library package folder) # FILE=SERVED ...
  foreach(pair ${ARGN})
    string(REGEX MATCH "^([^=]+)=(.+)$" whole ${pair})
    set(file ${folder}/${CMAKE_MATCH_1})
    if(NOT EXISTS ${file})
      message(FATAL_ERROR "${file} of the page is missing: apt-get install ${package}, or build without the page, -DFATHOM_PAGE=OFF")
    endif()
    list(APPEND embedded /lib/${CMAKE_MATCH_2}=${file})
  endforeach()
  set(embedded ${embedded} PARENT_SCOPE)
endfunction()

page_library(libjs-marked /usr/share/javascript/marked marked.umd.min.js=marked.js)
page_library(libjs-katex /usr/share/javascript/katex katex.js=katex.js katex.min.css=katex.css)
foreach(font AMS-Regular Caligraphic-Bold Caligraphic-Regular Fraktur-Bold Fraktur-Regular Main-Bold Main-BoldItalic Main-Italic
        Main-Regular Math-BoldItalic Math-Italic SansSerif-Bold SansSerif-Italic SansSerif-Regular Script-Regular Size1-Regular
        Size2-Regular Size3-Regular Size4-Regular Typewriter-Regular)
  page_library(fonts-katex /usr/share/fonts/truetype/katex KaTeX_${font}.woff2=fonts/KaTeX_${font}.woff2)
endforeach()
foreach(language core markup css clike javascript typescript jsx tsx c cpp csharp java kotlin scala go rust swift python ruby
        markup-templating php perl lua r julia haskell bash powershell sql json yaml toml ini markdown latex diff docker makefile
        cmake nasm glsl verilog)
  page_library(node-prismjs /usr/share/nodejs/prismjs/components prism-${language}.min.js=prism-${language}.min.js)
endforeach()
