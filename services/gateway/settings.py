"""What the gateway can be told."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from anabranch.services.gateway.addresses import is_loopback, networks_of
from anabranch.services.gateway.issuer import ALGORITHMS, checked_url
from anabranch.services.gateway.origins import origins_of
from anabranch.shared.contracts import groups
from anabranch.shared.contracts.limits import DEFAULT_RUN_TIMEOUT_S, DEFAULT_STEP_TIMEOUT_S, DEFAULT_WINDOW, MAX_WAIT_S
from anabranch.shared.contracts.messages import RunSettings
from anabranch.shared.record.settings import RecordSettings


class GatewaySettings(RecordSettings):
    """Settings of `services.gateway`."""

    http_port: int = Field(8080, ge=0, le=65535, description="Port of the HTTP API; 0 is any free port.")
    default_tenant: str = Field("default", min_length=1, description="Whom runs belong to without authentication.")
    auth: Literal["loopback", "keys", "jwt", "both", "off"] = Field(
        "loopback",
        description="Who is let in: `keys` asks for API keys, `jwt` for tokens of an OIDC issuer, `both` for either; "
        "`loopback` asks nobody and starts on a loopback address only; `off` asks nobody anywhere, if "
        "`ANABRANCH_AUTH_OFF_IS_MEANT` says so too.",
    )
    auth_off_is_meant: bool = Field(False, description="Says a second time that nobody is asked who he is.")
    jwt_issuer: str = Field("", description="The `iss` of tokens, a URL; needed for tokens.")
    jwt_audience: str = Field("", description="The `aud` of tokens that are for us, or several: `a, b`; needed too.")
    jwt_jwks_url: str = Field(
        "",
        description="Where the issuer's keys are; unless set, where its `/.well-known/openid-configuration` says.",
    )
    jwt_algorithms: str = Field(
        "RS256, ES256", description="Signatures that are believed; `HS…` and `none` cannot be named."
    )
    jwt_skew_s: float = Field(30.0, ge=0, le=600, description="Seconds an issuer's clock may differ from ours.")
    jwt_tenant_claim: str = Field(
        "tenant",
        min_length=1,
        description="The claim that names the tenant; with a `/` in front, a JSON Pointer to it.",
    )
    jwt_scope_claim: str = Field(
        "scope",
        min_length=1,
        description="The claim with the scopes, as text or as a list; a JSON Pointer as well: `/realm_access/roles`.",
    )
    jwt_scope_prefix: str = Field(
        "", description="What the names of our scopes begin with there: `anabranch:` for `anabranch:submit`."
    )
    idempotency_keep_s: int = Field(
        24 * 3600, ge=1, description="Seconds after a run's end for which its Idempotency-Key is promised."
    )
    body_timeout_s: float = Field(30.0, gt=0, description="Seconds in which a client has to send its body.")
    append_timeout_s: float = Field(
        10.0, gt=0, description="Seconds a submission waits for Kafka; then it is answered 503 with the run id."
    )
    max_inbox_lag: int = Field(
        50_000, ge=1, description="Requests and results the orchestrators may be behind before runs are refused."
    )
    lag_check_s: float = Field(2.0, gt=0, description="Seconds between two looks at the inbox's lag.")
    max_unacknowledged: int = Field(
        10_000, ge=1, description="Submissions on their way to Kafka before further ones are refused."
    )
    max_wait_s: float = Field(300.0, gt=0, description="The longest `?wait=` accepted.")
    max_waiters: int = Field(10_000, ge=1, description="Requests that may wait for a run's end at once.")
    max_waiters_of_client: int = Field(1_024, ge=1, description="Those of one client.")
    max_streams: int = Field(4_000, ge=1, description="Streams of events that may be open at once.")
    max_streams_of_client: int = Field(1_024, ge=1, description="Those of one client.")
    rate_limit: int = Field(
        60, ge=0, description="Requests a minute that submit or change something, of one client; 0 is no limit."
    )
    read_rate_limit: int = Field(600, ge=0, description="Requests a minute that read, of one client; 0 is no limit.")
    auth_failure_limit: int = Field(
        30, ge=0, description="Credentials a minute that do not work, from one address; 0 is no limit."
    )
    tenant_rate_limits: dict[str, dict[Literal["change", "read"], Annotated[int, Field(ge=0)]]] = Field(
        {},
        description='Limits of the clients of some tenants, as JSON: `{"acme": {"change": 600, "read": 6000}}`.',
    )
    trusted_proxies: str = Field(
        "", description="Networks whose `X-Forwarded-For` is believed: `10.0.0.0/8, 192.0.2.7`. Nobody's by default."
    )
    cors_origins: str = Field(
        "",
        description="Origins whose pages may use the API from a browser: `https://a.example`; `*` is any.",
    )
    request_log: float = Field(
        1.0, ge=0, le=1, description="The share of requests that get a line in the log; failures do unless it is 0."
    )
    head_timeout_s: float = Field(
        15.0, gt=0, description="Seconds in which a client has to send a request's head; before, to agree on TLS."
    )
    keepalive_timeout_s: float = Field(75.0, gt=0, description="Seconds after which an idle connection is closed.")
    max_connections: int = Field(15_000, ge=1, description="Connections at once; further ones are answered 503.")
    max_connections_of_client: int = Field(
        1_024, ge=1, description="Those from one address, unless it is a trusted proxy's."
    )
    tls_certificate: str = Field(
        "", description="PEM file of the certificate, and of those between it and its authority; without, no TLS."
    )
    tls_key: str = Field("", description="PEM file of its key, without a password; in the same file unless set.")
    tls_check_s: float = Field(10.0, gt=0, description="Seconds between two looks whether these files have changed.")
    max_requests: int = Field(12_000, ge=1, description="Requests in hand at once, those that wait among them.")
    max_requests_of_client: int = Field(1_024, ge=1, description="Those of one client.")

    run_window: int = Field(DEFAULT_WINDOW, ge=1, description="Steps of one run in flight at once.")
    run_timeout_s: float = Field(
        DEFAULT_RUN_TIMEOUT_S, gt=0, le=MAX_WAIT_S, description="Of a run whose definition names none."
    )
    step_timeout_s: float = Field(
        DEFAULT_STEP_TIMEOUT_S, gt=0, le=MAX_WAIT_S, description="Of an attempt that names none."
    )
    suspect_s: float = Field(
        5.0, ge=0, le=MAX_WAIT_S, description="Seconds between a lapsed lease and the next attempt."
    )
    cancel_grace_s: float = Field(
        10.0, ge=0, le=MAX_WAIT_S, description="Seconds a stopping run waits for its workers' answers."
    )
    max_losses: int = Field(5, ge=0, description="Lost workers after which a step fails with WorkerLost.")

    @model_validator(mode="after")
    def _lists_can_be_read(self) -> Self:
        networks_of(self.trusted_proxies)
        origins_of(self.cors_origins)
        if unknown := self.jwt_allowed - ALGORITHMS:
            raise ValueError(
                f"{sorted(unknown)} are no algorithms for tokens; these are: {', '.join(sorted(ALGORITHMS))}"
            )
        return self

    @model_validator(mode="after")
    def _tokens_can_be_checked(self) -> Self:
        for url in filter(None, (self.jwt_issuer, self.jwt_jwks_url)):
            checked_url(url)
        if self.takes_tokens and not (self.jwt_issuer and self.jwt_audiences and self.jwt_allowed):
            raise ValueError("tokens need ANABRANCH_JWT_ISSUER, ANABRANCH_JWT_AUDIENCE and ANABRANCH_JWT_ALGORITHMS")
        return self

    @model_validator(mode="after")
    def _a_key_has_a_certificate(self) -> Self:
        if self.tls_key and not self.tls_certificate:
            raise ValueError(
                "ANABRANCH_TLS_KEY is set and ANABRANCH_TLS_CERTIFICATE is not: nothing would be encrypted"
            )
        return self

    @model_validator(mode="after")
    def _strangers_are_asked(self) -> Self:
        told_twice = self.auth == "off" and self.auth_off_is_meant
        if not self.asks and not told_twice and not is_loopback(self.http_host):
            raise ValueError(
                f"on {self.http_host!r} anybody could run pipelines: set ANABRANCH_AUTH=keys (or jwt, both), listen on "
                "127.0.0.1, or say it twice: ANABRANCH_AUTH=off and ANABRANCH_AUTH_OFF_IS_MEANT=true"
            )
        return self

    @property
    def takes_keys(self) -> bool:
        """Whether API keys open anything."""
        return self.auth in ("keys", "both")

    @property
    def takes_tokens(self) -> bool:
        """Whether an issuer's tokens open anything."""
        return self.auth in ("jwt", "both")

    @property
    def asks(self) -> bool:
        """Whether anybody is asked who he is."""
        return self.takes_keys or self.takes_tokens

    @property
    def jwt_allowed(self) -> frozenset[str]:
        """The signatures of tokens that are believed."""
        return frozenset(_listed(self.jwt_algorithms))

    @property
    def jwt_audiences(self) -> list[str]:
        """Who tokens are for, when they are for us."""
        return _listed(self.jwt_audience)

    @property
    def orchestrator_group(self) -> str:
        """The consumer group whose committed offsets say how far the orchestrators are."""
        return groups.orchestrators(self.topic_prefix)

    def stamped(self) -> RunSettings:
        """Return what is stamped into every submission."""
        return RunSettings(
            window=self.run_window,
            run_timeout_s=self.run_timeout_s,
            step_timeout_s=self.step_timeout_s,
            suspect_s=self.suspect_s,
            cancel_grace_s=self.cancel_grace_s,
            max_losses=self.max_losses,
        )


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]
