# melsearch as an image: `docker compose build`. BuildKit is needed, an internet connection is not:
# PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST and CONSTRAINTS are for closed networks.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# The locked dependencies alone: gigabytes that change with requirements.lock only.
FROM ${PYTHON_IMAGE} AS dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
# A constraint file of pip's in the build context; the default adds nothing.
ARG CONSTRAINTS=requirements.lock
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/melsearch
COPY requirements.lock ${CONSTRAINTS} /build/
RUN /opt/melsearch/bin/pip install --only-binary :all: \
        -r /build/requirements.lock -c "/build/$(basename "$CONSTRAINTS")"

# Our own code, as a wheel beside them.
FROM dependencies AS code
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY storage storage
COPY trainer trainer
COPY search search
RUN /opt/melsearch/bin/pip install --no-deps --no-build-isolation --prefix /code .

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="melsearch" \
      org.opencontainers.image.description="Hyperparameter search for deepfake-speech detectors" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# 1000 is the first person's id on most hosts, so that what lies in ./runs is theirs.
RUN groupadd --gid 1000 melsearch \
 && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp melsearch \
 && install -d -o melsearch -g melsearch /runs
COPY --from=dependencies /opt/melsearch /opt/melsearch
COPY --from=code /code /opt/melsearch
# The root file system may be read-only: all that is written lies in /runs and /tmp.
ENV PATH=/opt/melsearch/bin:$PATH \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    NUMBA_CACHE_DIR=/tmp/numba \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MELSEARCH_HOME=/runs/.melsearch \
    HF_HOME=/runs/.melsearch/weights \
    TORCH_HOME=/runs/.melsearch/weights/torch \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /runs
USER 1000:1000
ENTRYPOINT ["melsearch"]
CMD ["--help"]
