# llmft, run by an ordinary user. Build it, and run a recipe of the current folder:
#
#   docker build --build-arg UID=$(id -u) --tag llmft .
#   docker run --rm --volume "$PWD":/work --volume llmft-cache:/home/llmft/.cache llmft run recipe.yaml
#
# With a GPU add `--gpus all`; to rank answers on the page add `--network host`. Models and data sets
# are kept in the volume llmft-cache. For torch's smaller CPU build, give the address of its package
# index as `--build-arg PIP_EXTRA_INDEX_URL=...`.
FROM python:3.12-slim

ARG UID=1000
RUN useradd --create-home --uid "$UID" llmft \
    && install --directory --owner llmft /work /home/llmft/.cache

ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY llmft /src/llmft
COPY plugins /src/plugins
COPY recipes /src/recipes
RUN pip install --no-cache-dir --constraint /src/constraints.txt /src

USER llmft
WORKDIR /work
ENTRYPOINT ["llmft"]
CMD ["--help"]
