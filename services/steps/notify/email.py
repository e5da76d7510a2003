"""An e-mail by SMTP. Who sends it and which server takes it is the operator's; to whom and what, the pipeline's."""

import hashlib
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Annotated

import aiosmtplib
from pydantic import BaseModel, ConfigDict, Field

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.notify.settings import NotifySettings
from anabranch.shared.contracts.errors import RetryableError, TerminalError
from anabranch.shared.contracts.limits import MAX_RECIPIENTS
from anabranch.shared.runtime.clock import now_ms

Address = Annotated[str, Field(pattern=r"""^[^\s@<>,;:"()\[\]\\\x00-\x1f\x7f]{1,64}@[A-Za-z0-9.-]{1,253}$""")]


class Email(BaseModel):
    """To whom, and what."""

    model_config = ConfigDict(extra="forbid")

    to: Address | Annotated[list[Address], Field(min_length=1, max_length=MAX_RECIPIENTS)]
    subject: str = Field(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$", description="One line.")
    text: str
    html: str | None = Field(None, description="The same for readers of HTML.")


async def send(given: Email, context: StepContext, settings: NotifySettings) -> None:
    """Hand an e-mail to the server; what it refuses for good is not tried again."""
    if settings.smtp_host is None:
        raise TerminalError("`email` needs ANABRANCH_SMTP_HOST on the step service", error_type="EmailNotConfigured")
    recipients = [given.to] if isinstance(given.to, str) else given.to
    try:
        await aiosmtplib.send(
            _message(given, recipients, context, settings),
            sender=settings.smtp_from, recipients=recipients,
            hostname=settings.smtp_host, port=settings.smtp_port,
            username=settings.smtp_user,
            password=settings.smtp_password.get_secret_value() if settings.smtp_password else None,
            use_tls=settings.smtp_security == "tls", start_tls=settings.smtp_security == "starttls",
        )  # fmt: skip
    except aiosmtplib.SMTPResponseException as error:
        words = f"the mail server refused it: {error.code} {error.message}"
        if error.code >= 500:
            raise TerminalError(words, error_type="EmailRefused") from error
        raise RetryableError(words, error_type="EmailRefused") from error
    except aiosmtplib.SMTPRecipientsRefused as error:
        codes = [refused.code for refused in error.recipients]
        words = f"the mail server refused all recipients: {', '.join(map(str, codes))}"
        raise (TerminalError if min(codes) >= 500 else RetryableError)(words, error_type="EmailRefused") from error
    except (aiosmtplib.SMTPException, OSError) as error:
        raise RetryableError(f"the mail server cannot be reached: {error}", error_type="EmailUnreachable") from error
    except (UnicodeError, ValueError) as error:
        raise TerminalError(f"the e-mail cannot be written: {error}", error_type="EmailInvalid") from error


def _message(given: Email, recipients: list[str], context: StepContext, settings: NotifySettings) -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message["From"] = settings.smtp_from
    message["To"] = ", ".join(recipients)
    message["Subject"] = given.subject
    message["Date"] = format_datetime(datetime.fromtimestamp(now_ms() / 1000, UTC))
    # The same for each attempt: a server or reader that has it already may drop the repeat.
    message["Message-ID"] = f"<{hashlib.sha256(context.idempotency_key.encode()).hexdigest()[:32]}@anabranch>"
    message.set_content(given.text)
    if given.html is not None:
        message.add_alternative(given.html, subtype="html")
    return message
