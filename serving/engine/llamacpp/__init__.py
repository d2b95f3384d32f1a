"""The llama.cpp backend, over llama-cpp-python's low-level binding. The only modules that import
`llama_cpp`."""
