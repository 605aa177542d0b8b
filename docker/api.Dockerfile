# The API: Python, what serving needs and no more (docker/api.lock, hash by hash), the library. Any builder takes it:
#   make image            says what it does; or: docker build -f docker/api.Dockerfile -t health-predict-api .
#   docker run --rm --read-only --tmpfs /tmp -v "$PWD/storage:/storage:ro" -p 8000:8000 health-predict-api
# `make pin` puts the base's digest of today here.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS packages
COPY docker/api.lock /tmp/api.lock
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m venv /tmp/installer \
 && python3 -m venv --without-pip /opt/health-predict \
 && /tmp/installer/bin/pip --cache-dir /var/cache/pip --python /opt/health-predict/bin/python install --quiet --no-deps --no-compile --only-binary :all: --require-hashes -r /tmp/api.lock \
 && mkdir /storage
COPY health_predict /opt/health-predict/lib/python3.11/site-packages/health_predict
COPY docker/health-predict /opt/health-predict/bin/health-predict
# What no server loads goes; the rest is compiled here, since nothing can be written later, and by content, so that two builds give the same files.
WORKDIR /opt/health-predict/lib/python3.11/site-packages
RUN rm -rf onnxruntime/transformers onnxruntime/quantization onnxruntime/tools \
 && find . -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} + \
 && find botocore/data -mindepth 1 -maxdepth 1 -type d -not -name s3 -not -name 'sso*' -not -name sts -exec rm -rf {} + \
 && PYTHONHASHSEED=0 /opt/health-predict/bin/python -m compileall -q --invalidation-mode unchecked-hash .

FROM ${BASE}
ARG REVISION=unknown
ARG VERSION=0
LABEL org.opencontainers.image.title="health-predict-api" \
      org.opencontainers.image.description="Predictions of hospital readmission over HTTP" \
      org.opencontainers.image.source="https://github.com/health-predict/health-predict" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=packages /opt/health-predict /opt/health-predict
COPY --from=packages --chown=10001:10001 /storage /storage
COPY settings.ini /app/settings.ini
WORKDIR /app
# Storage may be mounted read-only: what a server writes of its own is in /tmp.
ENV PATH=/opt/health-predict/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    HEALTH_PREDICT_STORAGE=/storage \
    HEALTH_PREDICT_SERVING__LOCAL=/tmp/models \
    HEALTH_PREDICT_SERVING__HOST=0.0.0.0 \
    HEALTH_PREDICT_SERVING__PORT=8000
EXPOSE 8000
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['HEALTH_PREDICT_SERVING__PORT'] + '/health/ready', timeout=2)"]
ENTRYPOINT ["health-predict"]
CMD ["serve"]
