"""Whether the service in this container answers `/healthz`: exit code 0 or 1, for Docker's HEALTHCHECK.

    python -m anabranch.deploy.docker.health [path]

Kubernetes asks the service itself. Another path, `/readyz` for instance, is asked for when one is given. A certificate
is not checked, as no probe does: it names the host that others see.
"""

import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

_HOST = "127.0.0.1"
_TIMEOUT_S = 4.0  # below the time-out of the check itself


def answers(path: str, port: int, *, speaks_tls: bool) -> bool:
    """Return whether GET of the path on the loopback port is answered with 200 in time."""
    connection = (
        HTTPSConnection(_HOST, port, timeout=_TIMEOUT_S, context=ssl._create_unverified_context())  # noqa: S323
        if speaks_tls
        else HTTPConnection(_HOST, port, timeout=_TIMEOUT_S)
    )
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    healthy = answers(
        sys.argv[1] if len(sys.argv) > 1 else "/healthz",
        int(os.environ.get("ANABRANCH_HTTP_PORT", "8080")),
        speaks_tls=bool(os.environ.get("ANABRANCH_TLS_CERTIFICATE")),
    )
    sys.exit(0 if healthy else 1)
