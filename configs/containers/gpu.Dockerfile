# The image of GPU nodes, on which trials train; engines run on CPU nodes (cpu.Dockerfile).
#
#   docker build -f configs/containers/gpu.Dockerfile -t orpo-on-ray:gpu .
#   docker run --rm --gpus all --shm-size=8g orpo-on-ray:gpu orpo doctor
#
# torch's own wheel brings CUDA; the development image brings nvcc, with which DeepSpeed compiles its kernels when a
# config asks for them. The engine's CPU variants are those of cpu.Dockerfile: one cluster computes alike.
# Ray takes only nodes of one Python, to the patch level: it is taken from the image that cpu.Dockerfile begins with.
FROM python:3.11.13-slim-bookworm AS python

# The CUDA that the pinned torch is built for: DeepSpeed's kernels have to be compiled by the same.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

# wget: for KubeRay's probes, as in cpu.Dockerfile.
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    build-essential cmake git libffi8 libreadline8t64 libsqlite3-0 libssl3t64 ninja-build openssh-client rsync wget \
 && rm -rf /var/lib/apt/lists/* \
 && (userdel --remove ubuntu || true) \
 && useradd --create-home --uid 1000 ray \
 && install -d -o ray -g ray /srv/orpo
COPY --from=python /usr/local/bin/ /usr/local/bin/
COPY --from=python /usr/local/include/ /usr/local/include/
COPY --from=python /usr/local/lib/ /usr/local/lib/
RUN ldconfig \
 && python3.11 -c "import bz2, ctypes, lzma, readline, sqlite3, ssl, uuid, zlib" \
 && python3.11 -m venv /opt/orpo
ENV PATH=/opt/orpo/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE configs/llama_cpp.cmake ./
RUN pip install -c constraints.txt setuptools wheel ninja packaging torch
RUN CXXFLAGS="-fno-tree-dse -fno-dse" \
    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DGGML_BACKEND_DIR=/opt/orpo/lib/ggml -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_INCLUDE=/src/llama_cpp.cmake" \
    pip install -c constraints.txt --no-binary llama-cpp-python llama-cpp-python \
 && ls /opt/orpo/lib/ggml/libggml-cpu-*.so
RUN pip install -c constraints.txt --no-build-isolation deepspeed
COPY ray_jobs ray_jobs
COPY serving serving
COPY configs configs
# qlora: 4-bit weights, the form in which a 22B base trains on one GPU.
RUN pip install -c constraints.txt ".[local,tracking,wandb,qlora]"
# Our kernels beside llama.cpp's libraries, for each of the instruction sets that the image may meet.
RUN cd /tmp && python -m serving.engine.llamacpp.kernels

COPY --chown=ray configs /srv/orpo/configs
ENV RAY_AUTH_MODE=token
USER ray
WORKDIR /srv/orpo
CMD ["orpo", "doctor"]
