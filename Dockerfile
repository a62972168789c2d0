# An argument, so that a copy from another registry, or one pinned by its digest, can take its place.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build

# Without pip: nothing is to be installed into the finished image.
RUN python -m venv --without-pip /opt/relay

WORKDIR /src
COPY .requirements.lock .build.lock ./

# Every file by its hash: what another hand has put into a registry is not installed.
# Wheels only: there is no compiler here, so a wheel that is missing for this Python should be named, not attempted.
RUN pip install --no-cache-dir --only-binary :all: --require-hashes --requirement .build.lock \
    && pip --python /opt/relay/bin/python install --no-cache-dir --only-binary :all: --require-hashes \
        --requirement .requirements.lock

COPY LICENSE README.md pyproject.toml ./
COPY relay relay

RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && pip --python /opt/relay/bin/python install --no-cache-dir --no-index --no-deps /wheels/*.whl


FROM ${BASE}

LABEL org.opencontainers.image.title="Relay" \
      org.opencontainers.image.description="A self-hosted webhook gateway: receives, proves, commits, then delivers to every target." \
      org.opencontainers.image.licenses="MIT"

# Fixed numbers: whoever mounts a directory has to know whom to give it to. The store is nobody else's business.
RUN groupadd --gid 10001 relay \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /var/lib/relay \
        --shell /usr/sbin/nologin relay \
    && install -d -m 0755 /etc/relay \
    && install -d -m 0700 -o 10001 -g 10001 /var/lib/relay

# It stays root's: a relay that was taken over cannot rewrite itself.
COPY --from=build /opt/relay /opt/relay
ENV PATH=/opt/relay/bin:$PATH

# The base comes without bytecode of its standard library, and later nobody may write any: importing all of Relay here
# compiles just what it uses; each start and each health check takes half as long. What cannot import is not built.
# The encodings are those that are only looked up by name.
RUN python -c 'import encodings.idna, encodings.utf_8_sig, importlib, pkgutil, relay, uvloop; \
[importlib.import_module(found.name) for found in pkgutil.walk_packages(relay.__path__, "relay.")]'

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# The working directory is the volume: a relative store path lies in it, and so do SQLite's temporary files where no
# /tmp can be written, so the root file system may be read-only.
WORKDIR /var/lib/relay
VOLUME /var/lib/relay

# As numbers: Kubernetes' runAsNonRoot does not look up names.
USER 10001:10001

EXPOSE 8080 8081
STOPSIGNAL SIGTERM

# Alive, not ready: a full disk or a store that is away is no reason to restart it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=15s --retries=3 CMD ["relay", "health"]

ENTRYPOINT ["relay"]
CMD ["run"]
