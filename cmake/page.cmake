# Adds the pages and the libraries that they need, Debian's, to `embedded` (src/serve/page/README.md): chat/NAME are files of the page of
# fathom serve, watch/NAME those of fathom watch.
set(page ${CMAKE_CURRENT_SOURCE_DIR}/serve/page)
function(page_files name) # FILE ...
  foreach(file ${ARGN})
    get_filename_component(base ${file} NAME)
    list(APPEND embedded ${name}/${base}=${file})
  endforeach()
  set(embedded ${embedded} PARENT_SCOPE)
endfunction()
file(GLOB chat CONFIGURE_DEPENDS ${page}/*.html ${page}/*.css ${page}/*.js ${page}/*.txt)
file(GLOB watch CONFIGURE_DEPENDS ${page}/watch/*.html ${page}/watch/*.css ${page}/watch/*.js)
page_files(chat ${chat})
page_files(watch ${watch} ${page}/base.css ${page}/theme.js ${page}/dom.js ${page}/theme_choice.js ${page}/ask.js ${page}/key.js)

function(page_library package folder) # FILE=SERVED ...
  foreach(pair ${ARGN})
    string(REGEX MATCH "^([^=]+)=(.+)$" whole ${pair})
    set(file ${folder}/${CMAKE_MATCH_1})
    if(NOT EXISTS ${file})
      message(FATAL_ERROR "${file} of the page is missing: apt-get install ${package}, or build without the page, -DFATHOM_PAGE=OFF")
    endif()
    list(APPEND embedded chat/lib/${CMAKE_MATCH_2}=${file})
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
