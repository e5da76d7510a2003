# Kafka, Valkey, PostgreSQL and what the examples read, all of the same Python packages as the local stack: for a cluster to
# try Anabranch on that pulls no images (deploy/k8s/overlays/local). Not for production.
#
#   docker build -f deploy/docker/stores.Dockerfile -t anabranch-stores .
ARG ANABRANCH=anabranch
ARG BUILD_BASE=python:3.13-slim-bookworm

FROM $ANABRANCH AS anabranch

FROM $BUILD_BASE AS build
ARG PIP_CERT PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_INDEX_URL PIP_TRUSTED_HOST
ARG PIP_DISABLE_PIP_VERSION_CHECK=1
ARG REQUESTS_CA_BUNDLE
COPY --from=anabranch /opt/anabranch /opt/anabranch
COPY deploy/docker/stores.lock /
RUN python3 -m venv /pip \
 && /pip/bin/pip --python /opt/anabranch install --no-cache-dir --no-compile --require-hashes -r stores.lock \
 && ANABRANCH_CACHE=/opt/anabranch-cache /opt/anabranch/bin/python -m anabranch.deploy.local.jars fetch

FROM $ANABRANCH
COPY --from=build /opt/anabranch /opt/anabranch
COPY --from=build /opt/anabranch-cache /opt/anabranch-cache
COPY deploy/docker/stores examples /opt/stores/
ENV ANABRANCH_CACHE=/opt/anabranch-cache
HEALTHCHECK NONE
ENTRYPOINT ["sh"]
CMD ["-c", "ls /opt/stores"]
