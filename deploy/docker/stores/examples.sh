#!/bin/sh
# What the examples read, for the whole cluster.
cd /opt/stores
exec python -c 'import asyncio, serve; serve.HOST = "0.0.0.0"; asyncio.run(serve.main(8090))'
