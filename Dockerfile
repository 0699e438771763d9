# The service alone, without a compiler, pip or development tools. docs/deploy.md says how to use it.
#
#   docker build -t automna-proxy .                  runs as user 10001 from its first instruction on
#   docker build -t automna-proxy --target fly .     starts as root, gives /data to 10001, becomes 10001
#
# Instructions are in exec form throughout: `make image-test` executes them without Docker.

# Pinned by digest in production: --build-arg PYTHON=python:3.11-slim-bookworm@sha256:...
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN ["python", "-m", "venv", "--without-pip", "/opt/automna-proxy"]
COPY requirements.lock requirements-build.lock ./
RUN ["python", "-m", "pip", "--python", "/opt/automna-proxy/bin/python", "install", "--quiet", "--no-compile", "--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", "requirements.lock"]
RUN ["python", "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", "requirements-build.lock"]
COPY pyproject.toml README.md ./
COPY automna_proxy automna_proxy
COPY routes routes
COPY proxy proxy
COPY provisioning provisioning
COPY metering metering
COPY simulators simulators
RUN ["python", "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", "/wheel", "."]
RUN ["python", "-m", "pip", "--python", "/opt/automna-proxy/bin/python", "install", "--quiet", "--no-compile", "--no-index", "--no-deps", "--find-links", "/wheel", "automna-proxy"]
# By content, not by time: a tool that sets the files' times anew must not make every start compile.
RUN ["python", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "/opt/automna-proxy/lib"]

FROM ${PYTHON} AS fly
COPY --from=build /opt/automna-proxy /opt/automna-proxy
RUN ["ln", "-s", "/opt/automna-proxy/bin/automna-proxy-container", "/usr/local/bin/automna-proxy"]
# A new named volume of Docker's takes its owner from here.
RUN ["install", "-d", "-m", "0700", "-o", "10001", "-g", "10001", "/data"]
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1
ENV DATABASE_URL=sqlite:////data/automna-proxy.db LOG_FORMAT=json
WORKDIR /opt/automna-proxy
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/automna-proxy"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8080"]

FROM fly AS serve
USER 10001:10001
