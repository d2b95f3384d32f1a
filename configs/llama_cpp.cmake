# Read after each project() of llama-cpp-python's build (CMAKE_PROJECT_INCLUDE): leaves out llama.cpp's library for
# command-line programs, which nothing in Python calls and which takes a while to compile. llama-cpp-python (0.3.36)
# asks for it in CMake's cache, before which an ordinary variable goes.
set(LLAMA_BUILD_COMMON OFF)
