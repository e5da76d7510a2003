"""Why a Kafka that is there does not let us in, in words for who can change it: aiokafka's own start does not say."""

import ssl
from collections.abc import Iterator
from typing import Any, Final

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaError, SaslAuthenticationFailed, UnsupportedSaslMechanismError
from aiokafka.protocol.metadata import MetadataRequest

from anabranch.shared.runtime.kafka_security import TokenUnavailable, connection_arguments
from anabranch.shared.runtime.settings import Settings

_TIMEOUT_MS: Final = 5_000

_CREDENTIALS: Final = {
    "OAUTHBEARER": "KAFKA_OAUTH_TOKEN_FILE or KAFKA_OAUTH_TOKEN_URL, and whether the token is expired",
}


async def refusal(settings: Settings) -> str:
    """Return why the brokers that are there do not let us in; "" when one does, or none is there.

    Raises `UnusableSettings`.
    """
    if settings.kafka_security_protocol == "PLAINTEXT":
        return ""
    arguments = connection_arguments(settings)
    why = ""
    for host, port, _ in collect_hosts(settings.kafka_bootstrap_servers, randomize=False):
        try:
            await _knock(host, port, arguments)
        except (KafkaError, OSError, TimeoutError, ValueError) as error:  # aiokafka's, of a wrong server's signature
            if words := _words(error, settings):
                why = why or f"Kafka at {host}:{port} {words}"
        else:
            return ""
    return why


async def _knock(host: str, port: int, arguments: dict[str, Any]) -> None:
    connection = await create_conn(host, port, request_timeout_ms=_TIMEOUT_MS, **arguments)
    is_by_token = arguments.get("sasl_mechanism") == "OAUTHBEARER"
    try:
        answer = await connection.send(MetadataRequest([]))
    except KafkaError as error:
        if is_by_token:
            raise SaslAuthenticationFailed("it hangs up after the login") from error
        raise
    finally:
        connection.close()
    # A broker says what is wrong with a token in a question that aiokafka takes for consent.
    if is_by_token and not answer.brokers:
        raise SaslAuthenticationFailed("it answers nothing after the login")


def _words(error: BaseException, settings: Settings) -> str:
    for cause in _causes(error):
        if words := _of(cause, settings):
            return words
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _of(error: BaseException, settings: Settings) -> str:
    if isinstance(error, ssl.SSLError):
        return _of_tls(error)
    match error:
        case SaslAuthenticationFailed():
            what = _CREDENTIALS.get(settings.kafka_sasl_mechanism, "KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD")
            return f"refuses the login by {settings.kafka_sasl_mechanism}: see {what}"
        case UnsupportedSaslMechanismError():
            return f"does not let anybody log in by {settings.kafka_sasl_mechanism}: see KAFKA_SASL_MECHANISM"
        case TokenUnavailable():
            return f"cannot be logged in to: {error.args[0]}"
        case _:
            return ""


def _of_tls(error: ssl.SSLError) -> str:
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"shows a certificate that is not trusted ({error.verify_message}): see KAFKA_SSL_CAFILE"
    if "alert" in reason:
        return f"refuses our certificate ({reason}): see KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE"
    return f"does not speak TLS ({reason}): see KAFKA_SECURITY_PROTOCOL"
