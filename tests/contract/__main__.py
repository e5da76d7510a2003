"""`python -m tests.contract`: let schemathesis judge a whole stack; exit code 1 when a check fails.

SCHEMATHESIS_EXAMPLES=500 python -m tests.contract [options of `schemathesis run`]
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from anabranch.deploy.local.stack import LocalStack
from tests.contract.described import judge

# What is drawn comes faster than a client may send, and asks for waits of minutes.
_RAISED: Final = {
    "ANABRANCH_LOG_LEVEL": "warning",
    "ANABRANCH_RATE_LIMIT": "0",
    "ANABRANCH_READ_RATE_LIMIT": "0",
    "ANABRANCH_REQUEST_LOG": "0",
    "ANABRANCH_MAX_WAIT_S": "1",
}


async def main(folder: Path, examples: int, options: list[str]) -> int:
    """Start a stack, have it judged, print the verdict."""
    async with LocalStack(folder / "stack", port=0, env=_RAISED, ready_timeout_s=180) as stack:
        code, printed = await judge(
            stack.gateway_url,
            folder,
            "--continue-on-failure",
            "--generation-database",
            "none",
            "--max-examples",
            str(examples),
            *options,
        )
    print(printed)
    return code


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="anabranch-schemathesis-", ignore_cleanup_errors=True) as made:
        sys.exit(asyncio.run(main(Path(made), int(os.environ.get("SCHEMATHESIS_EXAMPLES") or 500), sys.argv[1:])))
