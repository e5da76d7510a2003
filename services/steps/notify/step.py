"""Tells others: one webhook or one e-mail per attempt."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.fetch import open_session, refusal, requested
from anabranch.services.steps.notify.email import Email, send
from anabranch.services.steps.notify.settings import NotifySettings
from anabranch.services.steps.step_type import step_type
from anabranch.shared.contracts.errors import TerminalError
from anabranch.shared.runtime.clock import now_ms

_ENCODED_KEY: Final = "whsec_"  # as Standard Webhooks writes keys: base64 follows


class Notification(BaseModel):
    """Whom to tell what: a webhook, or somebody by e-mail."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    webhook: str | None = Field(None, pattern="^https?://")
    json_body: Any = Field(None, alias="json", description="Sent to the webhook.")
    signature: SecretStr | None = Field(
        None, min_length=1, description="Key that the webhook's receiver checks; `whsec_…` is base64."
    )
    email: Email | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "Notification":
        if (self.webhook is None) is (self.email is None):
            raise ValueError("a notification has exactly one of webhook, email")
        return self


class Told(BaseModel):
    """That they were told; the status of the webhook."""

    told: Literal["webhook", "email"]
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Tools:
    """What all attempts share."""

    session: aiohttp.ClientSession
    settings: NotifySettings


@asynccontextmanager
async def open_tools() -> AsyncIterator[Tools]:
    """Open what all attempts share."""
    async with open_session() as session:
        yield Tools(session, NotifySettings())


@step_type("notify", description="Tell others, by a webhook or by e-mail.", lifespan=open_tools)
async def notify(given: Notification, context: StepContext) -> Told:
    """Tell them; 5xx, 429 and a failed connection may be retried."""
    tools: Tools = context.resource
    if given.email is not None:
        await send(given.email, context, tools.settings)
        return Told(told="email")
    assert given.webhook is not None
    body = _encoded(given.json_body)
    headers = {"Content-Type": "application/json"} | _signed(given, body, context)
    # A redirect is not followed: what was signed for one place is not for another.
    async with requested(
        tools.session, "POST", given.webhook, data=body, headers=headers, allow_redirects=False
    ) as response:
        if not 200 <= response.status < 300:
            raise await refusal("POST", given.webhook, response)
        return Told(told="webhook", status=response.status)


def _encoded(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise TerminalError(f"the body cannot be sent: {error}", error_type="HttpRequestInvalid") from error


def _signed(given: Notification, body: bytes, context: StepContext) -> dict[str, str]:
    """Return the headers of Standard Webhooks: the id is the same for each attempt of the step."""
    moment = str(now_ms() // 1000)
    headers = {"webhook-id": context.idempotency_key, "webhook-timestamp": moment}
    if given.signature is not None:
        key = _key(given.signature.get_secret_value())
        digest = hmac.digest(key, b".".join((context.idempotency_key.encode(), moment.encode(), body)), hashlib.sha256)
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def _key(text: str) -> bytes:
    if not text.startswith(_ENCODED_KEY):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix(_ENCODED_KEY), validate=True)
    except (binascii.Error, ValueError):
        raise TerminalError("signature begins with whsec_ and is no base64", error_type="SignatureInvalid") from None
