# The image of head, CPU nodes and the endpoint: everything but CUDA.
#
#   docker build -f configs/containers/cpu.Dockerfile -t orpo-on-ray:cpu .
#   docker run --rm --shm-size=4g orpo-on-ray:cpu orpo doctor
#   docker run --rm --shm-size=4g -v "$PWD/runs:/srv/orpo/runs" -v "$PWD/registry:/srv/orpo/registry" orpo-on-ray:cpu \
#     orpo run configs/local.yaml
#
# One image for unlike CPUs: llama.cpp's CPU backend is built once for every level of instruction sets, and the one that
# fits is chosen when the engine starts. A build on the machine itself (make setup) is for that machine alone.
# Ray takes only nodes of one Python, to the patch level: both images have this one.
FROM python:3.11.13-slim-bookworm AS build

RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential cmake git ninja-build \
 && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/orpo
ENV PATH=/opt/orpo/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE configs/llama_cpp.cmake ./
# torch without CUDA comes from its own index; every other package from the usual one.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install -c constraints.txt setuptools wheel ninja packaging \
 && pip install "$(grep '^torch==' constraints.txt)" --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple
# -fno-tree-dse -fno-dse: GCC drops the stores that set up AMX tiles without them.
RUN CXXFLAGS="-fno-tree-dse -fno-dse" \
    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DGGML_BACKEND_DIR=/opt/orpo/lib/ggml -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_INCLUDE=/src/llama_cpp.cmake" \
    pip install -c constraints.txt --no-binary llama-cpp-python llama-cpp-python \
 && ls /opt/orpo/lib/ggml/libggml-cpu-*.so
RUN pip install -c constraints.txt --no-build-isolation deepspeed
COPY ray_jobs ray_jobs
COPY serving serving
COPY configs configs
RUN pip install -c constraints.txt ".[local,tracking,wandb]"
# Our kernels beside llama.cpp's libraries, for each of the instruction sets that the image may meet.
RUN cd /tmp && python -m serving.engine.llamacpp.kernels

FROM python:3.11.13-slim-bookworm
# g++ compiles the fused kernels of training (torch.compile); libgomp1 is llama.cpp's; wget is what the probes are made of
# that KubeRay before 1.6 puts into pods without probes of their own: without it such pods are never ready, and killed.
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ libgomp1 openssh-client rsync wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 ray \
 && install -d -o ray -g ray /srv/orpo
COPY --from=build /opt/orpo /opt/orpo
COPY --chown=ray configs /srv/orpo/configs
ENV PATH=/opt/orpo/bin:$PATH RAY_AUTH_MODE=token
USER ray
WORKDIR /srv/orpo
CMD ["orpo", "doctor"]
