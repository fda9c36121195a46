# syntax=docker/dockerfile:1
# Targets: api (no torch), worker (CPU torch), worker-gpu (CUDA torch). One image of code, three sets of libraries.
#   docker build --target api -t espalier-api .
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --uid 10001 --create-home espalier \
 && install --directory --owner espalier /var/lib/espalier /srv/models /srv/data
WORKDIR /opt/espalier
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY espalier espalier
COPY workers workers
COPY migrations migrations
ENV ESPALIER_HOME=/var/lib/espalier ESPALIER_MODELS_DIR=/srv/models ESPALIER_DATA_DIR=/srv/data

FROM base AS api
RUN pip install --constraint constraints.txt ".[api,tracing]"
USER 10001:10001
ENV ESPALIER_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["espalier", "api"]

FROM base AS worker
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Of equal versions pip prefers the one marked +cpu.
RUN pip install --constraint constraints.txt --extra-index-url "$TORCH_INDEX" torch \
 && pip install --constraint constraints.txt ".[worker,tracing]"
USER 10001:10001
# Whether its job goes on is the lease's matter, not this.
HEALTHCHECK --interval=60s --timeout=20s --start-period=60s --retries=5 CMD ["espalier", "probe", "worker"]
CMD ["espalier", "worker"]

FROM base AS worker-gpu
RUN pip install --constraint constraints.txt ".[worker,tracing]"
USER 10001:10001
ENV ESPALIER_WORKER_DEVICES=gpu
# Whether its job goes on is the lease's matter, not this.
HEALTHCHECK --interval=60s --timeout=20s --start-period=60s --retries=5 CMD ["espalier", "probe", "worker"]
CMD ["espalier", "worker"]
