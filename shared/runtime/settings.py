"""Settings every service shares: one frozen object, read from the environment in `__main__` and passed down."""

import os
import socket
from collections.abc import Mapping
from typing import Literal

from pydantic import AliasChoices, AliasGenerator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from anabranch.shared.contracts.topics import DEFAULT_PARTITIONS, DEFAULT_PREFIX, TopicNames

PREFIX = "ANABRANCH_"
SECRET_PREFIX = "ANABRANCH_SECRET_"  # noqa: S105  a secret of step services follows: no setting

# The names that every tool of the trade uses.
_UNPREFIXED = {
    name: name.upper()
    for name in (
        "kafka_bootstrap_servers",
        "kafka_security_protocol",
        "kafka_sasl_mechanism",
        "kafka_sasl_username",
        "kafka_sasl_password",
        "kafka_sasl_password_file",
        "kafka_ssl_cafile",
        "kafka_ssl_certfile",
        "kafka_ssl_keyfile",
        "kafka_oauth_token_file",
        "kafka_oauth_token_url",
        "kafka_oauth_client_id",
        "kafka_oauth_client_secret",
        "kafka_oauth_client_secret_file",
        "kafka_oauth_scope",
        "redis_url",
        "redis_ssl_cafile",
        "database_url",
    )
}

# Not of every service: read by clients, the local stack, and some step services of a whole installation.
_OTHERS = frozenset(
    {
        "ANABRANCH_API_KEY",
        "ANABRANCH_DATABASE_URL",
        "ANABRANCH_HOME",
        "ANABRANCH_HTTP_ALLOW",
        "ANABRANCH_SECRETS_ALLOW",
        "ANABRANCH_SECRETS_DIR",
        "ANABRANCH_SSL_CAFILE",
    }
)


def environment_names(field: str) -> tuple[str, ...]:
    """Return the environment variables that set a field, the one that wins first."""
    prefixed = PREFIX + field.upper()
    return (_UNPREFIXED[field], prefixed) if field in _UNPREFIXED else (prefixed,)


def unknown_names(settings: "type[Settings]", environment: Mapping[str, str]) -> list[str]:
    """Return the names in an environment that look like settings of ours but set nothing: a typing error, mostly."""
    known = {name for field in settings.model_fields for name in environment_names(field)} | _OTHERS
    return sorted(
        name
        for name in environment
        if name.startswith(PREFIX) and name not in known and not name.startswith(SECRET_PREFIX)
    )


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a process that is no step service."""
    return {name: value for name, value in environment.items() if not name.startswith(SECRET_PREFIX)}


def _alias(field: str) -> AliasChoices:
    return AliasChoices(*environment_names(field))


def _instance() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class Settings(BaseSettings):
    """What every service can be told. A service adds fields of its own in a subclass."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        alias_generator=AliasGenerator(validation_alias=_alias),
        hide_input_in_errors=True,  # it has passwords
    )

    kafka_bootstrap_servers: str = Field(
        "127.0.0.1:9092", description="Kafka brokers to ask first, `host:port,host:port`."
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How Kafka is spoken to: with TLS or without, with a login or without."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        "SCRAM-SHA-512", description="How to log in to Kafka, with `SASL_SSL` and `SASL_PLAINTEXT`."
    )
    kafka_sasl_username: str = Field("", description="The user to log in to Kafka, unless by `OAUTHBEARER`.")
    kafka_sasl_password: SecretStr = Field(SecretStr(""), description="Its password.")
    kafka_sasl_password_file: str = Field("", description="A file with the password instead.")
    kafka_ssl_cafile: str = Field(
        "", description="PEM file of the authorities that Kafka's certificate is checked by; the system's unless set."
    )
    kafka_ssl_certfile: str = Field("", description="PEM file of this client's certificate, for mutual TLS.")
    kafka_ssl_keyfile: str = Field("", description="PEM file of its key.")
    kafka_oauth_token_file: str = Field("", description="For `OAUTHBEARER`: a file with the token, read at each login.")
    kafka_oauth_token_url: str = Field(
        "", description="For `OAUTHBEARER`: where a token is asked for by client credentials (RFC 6749 §4.4)."
    )
    kafka_oauth_client_id: str = Field("", description="The client that asks for a token.")
    kafka_oauth_client_secret: SecretStr = Field(SecretStr(""), description="Its secret.")
    kafka_oauth_client_secret_file: str = Field("", description="A file with the secret instead.")
    kafka_oauth_scope: str = Field("", description="The scope asked for, if any.")
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,
        description="Redis or Valkey; with TLS and an ACL user `rediss://user:password@host:port/0`.",
    )
    redis_ssl_cafile: str = Field(
        "", description="PEM file of the authorities that Redis's certificate is checked by; the system's unless set."
    )
    topic_prefix: str = Field(
        DEFAULT_PREFIX, description="What every topic's, group's and Redis key's name begins with."
    )
    run_partitions: int = Field(
        DEFAULT_PARTITIONS, ge=1, description="Partitions of a topic keyed by run (P); fixed for the life of a prefix."
    )
    step_partitions: int = Field(DEFAULT_PARTITIONS, ge=1, description="Partitions of a command topic (S).")
    replication_factor: int = Field(1, ge=1, description="Copies of every topic; 3 in production.")
    http_host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` in a container.")
    http_port: int = Field(
        0, ge=0, le=65535, description="Port of `/healthz`, `/readyz`, `/metrics`; 0 is any free port."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe line that is written."
    )
    log_format: Literal["json", "console"] = Field("json", description="JSON lines, or lines for people.")
    instance: str = Field(
        default_factory=_instance,
        description="This process's name in logs and messages; `<hostname>-<pid>` unless set.",
    )
    predecessor: str = Field(
        "",
        pattern=r"^(\S+ -?\d+)?$",
        description="How the process before this one ended, `<instance> <exit status>`, negative for a signal: "
        "from a supervisor that knows. `WorkerLost` says it.",
    )
    stop_timeout_s: float = Field(
        20.0,
        gt=0,
        description="Seconds from SIGTERM until the process ends by itself; shorter than the pod's grace period.",
    )

    @property
    def topics(self) -> TopicNames:
        """The names of all topics under the prefix."""
        return TopicNames(self.topic_prefix, self.run_partitions, self.step_partitions)
