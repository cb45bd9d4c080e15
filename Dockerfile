# A target for each service: docker build --target scheduler-service -t carillon-scheduler-service:0.1.0 .
# Nothing is written at run time but to /tmp, so the root file system may be read-only.

FROM python:3.11-slim AS build
COPY requirements/services.lock /requirements/
RUN python -m venv /opt/carillon \
 && /opt/carillon/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r /requirements/services.lock
COPY clients/python/src/carillon/ /app/carillon/
COPY operations/ /app/operations/
COPY scheduler_service/ /app/scheduler_service/
COPY worker_service/ /app/worker_service/
COPY migrations/ /app/migrations/
# Compiled here, because a running container writes no bytecode; readable whatever the checkout's umask was.
RUN python -m compileall -q --invalidation-mode unchecked-hash /app && chmod -R a+rX /app

FROM build AS build-examples
COPY requirements/examples.lock /requirements/
RUN /opt/carillon/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r /requirements/examples.lock
COPY examples/email_service/ /app/examples/email_service/
COPY examples/kpi_service/ /app/examples/kpi_service/
COPY examples/smtp_sink/ /app/examples/smtp_sink/
RUN chmod -R a+rX /app/examples

FROM python:3.11-slim AS base
RUN groupadd --gid 10001 carillon \
 && useradd --uid 10001 --gid carillon --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin carillon
ENV PATH=/opt/carillon/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
LABEL org.opencontainers.image.vendor="Carillon" \
      org.opencontainers.image.version="0.1.0"
# By number: Kubernetes cannot tell of a name that it is not root's.
USER 10001:10001
STOPSIGNAL SIGTERM

FROM base AS scheduler-service
LABEL org.opencontainers.image.title="carillon-scheduler-service" \
      org.opencontainers.image.description="Carillon's scheduler: jobs, schedules, runs and their record, over gRPC"
COPY --from=build /opt/carillon/ /opt/carillon/
COPY --from=build /app/carillon/ /app/carillon/
COPY --from=build /app/operations/ /app/operations/
COPY --from=build /app/scheduler_service/ /app/scheduler_service/
COPY --from=build /app/migrations/ /app/migrations/
ENV CARILLON_HOST=0.0.0.0
# gRPC; HTTP for /metrics, /livez and /readyz
EXPOSE 7007 7008
# The start period is for migrating. Over HTTP, as gRPC may want TLS.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-m", "operations.probe", "http://127.0.0.1:7008/readyz"]
# `docker run ... migrate` migrates instead of serving.
ENTRYPOINT ["python", "-m", "scheduler_service"]

FROM base AS worker-service
LABEL org.opencontainers.image.title="carillon-worker-service" \
      org.opencontainers.image.description="Carillon's worker: carries runs out by calling services over HTTP and gRPC"
COPY --from=build /opt/carillon/ /opt/carillon/
COPY --from=build /app/carillon/ /app/carillon/
COPY --from=build /app/operations/ /app/operations/
COPY --from=build /app/worker_service/ /app/worker_service/
ENV CARILLON_WORKER_HOST=0.0.0.0
# HTTP for /metrics, /livez and /readyz
EXPOSE 7009
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-m", "operations.probe", "http://127.0.0.1:7009/readyz"]
ENTRYPOINT ["python", "-m", "worker_service"]

FROM base AS examples
LABEL org.opencontainers.image.title="carillon-examples" \
      org.opencontainers.image.description="Services that declare their jobs with Carillon, and a mail server that only writes down"
COPY --from=build-examples /opt/carillon/ /opt/carillon/
COPY --from=build-examples /app/carillon/ /app/carillon/
COPY --from=build-examples /app/examples/ /app/examples/
# Which example is the argument; each says for itself whether it is healthy.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m"]
CMD ["examples.email_service"]
