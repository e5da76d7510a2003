"""What the `notify` step service can be told."""

from typing import Literal

from pydantic import Field, SecretStr

from anabranch.services.steps.settings import StepServiceSettings


class NotifySettings(StepServiceSettings):
    """Settings of `services.steps.notify`."""

    smtp_host: str | None = Field(None, description="Server that takes e-mail; unset: `email` is refused.")
    smtp_port: int = Field(587, ge=1, le=65535, description="Its port.")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="`starttls` and `tls` check the server's certificate; `none` is for a local relay."
    )
    smtp_user: str | None = Field(None, description="Who logs in; unset: nobody does.")
    smtp_password: SecretStr | None = Field(None, description="The password of that user.")
    smtp_from: str = Field("anabranch@localhost", description="Sender of every e-mail.")
