# The pipeline, and what else needs all packages (docker/pipeline.lock): MLflow's server and JupyterLab run from this image too.
#   docker build -f docker/pipeline.Dockerfile -t health-predict-pipeline .
#   docker run --rm -v "$PWD/storage:/storage" health-predict-pipeline              the next batch
#   docker run --rm -v "$PWD/storage:/storage" health-predict-pipeline doctor       or any other command
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS packages
COPY docker/pipeline.lock /tmp/pipeline.lock
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m venv /tmp/installer \
 && python3 -m venv --without-pip /opt/health-predict \
 && /tmp/installer/bin/pip --cache-dir /var/cache/pip --python /opt/health-predict/bin/python install --quiet --no-deps --no-compile --require-hashes -r /tmp/pipeline.lock \
 && mkdir /storage /artifacts
COPY health_predict /opt/health-predict/lib/python3.11/site-packages/health_predict
COPY docker/health-predict /opt/health-predict/bin/health-predict
# Every stage is a process of its own: without compiled files each would compile pandas, scikit-learn and MLflow again.
WORKDIR /opt/health-predict/lib/python3.11/site-packages
RUN find . -name __pycache__ -prune -exec rm -rf {} + \
 && PYTHONHASHSEED=0 /opt/health-predict/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash . || true

FROM ${BASE}
ARG REVISION=unknown
ARG VERSION=0
LABEL org.opencontainers.image.title="health-predict-pipeline" \
      org.opencontainers.image.description="Drift, training, evaluation and reports, batch by batch" \
      org.opencontainers.image.source="https://github.com/health-predict/health-predict" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=packages /opt/health-predict /opt/health-predict
COPY --from=packages --chown=10001:10001 /storage /storage
COPY --from=packages --chown=10001:10001 /artifacts /artifacts
COPY pipeline.yaml env.yaml settings.ini /app/
COPY nbs/pipeline /app/nbs/pipeline
WORKDIR /app
ENV PATH=/opt/health-predict/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=health-predict \
    HEALTH_PREDICT_STORAGE=/storage
USER 10001:10001
HEALTHCHECK NONE
ENTRYPOINT ["health-predict"]
CMD ["run"]
