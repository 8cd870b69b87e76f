# Not built by this project's tests. Two variants:
#   docker build --target cuda -t ddpm .
#   docker build --target cpu -t ddpm --build-arg TORCH_INDEX=ADDRESS .
# ADDRESS: of PyTorch's CPU builds, from pytorch.org/get-started. The package index's own PyTorch, which `cuda` takes,
# brings NVIDIA's libraries (several gigabytes) and runs without a GPU too.
#   docker run --rm --gpus all -v "$PWD:/work" ddpm train image/mnist/ddpm_cpu
#   docker run --rm --network host -v "$PWD:/work" ddpm app output/.../diffusion-5000.pt     (after pip install 'ddpm[app]')
FROM python:3.11-slim AS base
# The fused CPU kernels are compiled when they are first used.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /ddpm
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY configs configs
ENV PIP_CONSTRAINT=/ddpm/constraints.txt PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

FROM base AS cpu
ARG TORCH_INDEX
RUN test -n "$TORCH_INDEX" || { echo "give --build-arg TORCH_INDEX=ADDRESS of PyTorch's CPU builds"; exit 1; }
RUN pip install --index-url "$TORCH_INDEX" torch
RUN pip install .
RUN useradd --create-home ddpm
USER ddpm
WORKDIR /work
ENTRYPOINT ["ddpm"]

FROM base AS cuda
RUN pip install .
RUN useradd --create-home ddpm
USER ddpm
WORKDIR /work
ENTRYPOINT ["ddpm"]
