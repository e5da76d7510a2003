"""What clients of Kafka and Redis are given by the settings, and what is wrong with those."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from anabranch import __version__
from anabranch.shared.runtime.errors import UnusableSettings
from anabranch.shared.runtime.kafka_security import (
    TokenClient,
    TokenEndpoint,
    TokenUnavailable,
    kafka_arguments,
    version_of,
)
from anabranch.shared.runtime.redis import redis_arguments
from anabranch.shared.runtime.settings import Settings


def test_nothing_is_asked_of_a_kafka_in_plain() -> None:
    """Whatever else is set."""
    settings = Settings(kafka_bootstrap_servers="k:1", instance="i", kafka_ssl_cafile="/nowhere")
    assert kafka_arguments(settings) == {
        "bootstrap_servers": "k:1", "client_id": f"i/{__version__}", "security_protocol": "PLAINTEXT"
    }  # fmt: skip
    assert version_of(kafka_arguments(settings)["client_id"]) == __version__
    assert version_of("console-consumer") == ""


def test_the_variables_have_the_names_that_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """As librdkafka's users and Kubernetes charts write them."""
    for name, value in {
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": "u",
        "KAFKA_SASL_PASSWORD": "p",
    }.items():
        monkeypatch.setenv(name, value)
    arguments = kafka_arguments(Settings())
    assert (arguments["sasl_plain_username"], arguments["sasl_plain_password"]) == ("u", "p")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "KAFKA_SASL_USERNAME"),
        ({"kafka_sasl_username": "u"}, "KAFKA_SASL_PASSWORD"),
        ({"kafka_sasl_username": "u", "kafka_sasl_password_file": "/nowhere"}, "KAFKA_SASL_PASSWORD_FILE"),
        ({"kafka_sasl_mechanism": "OAUTHBEARER"}, "KAFKA_OAUTH_TOKEN_FILE"),
        (
            {"kafka_sasl_mechanism": "OAUTHBEARER", "kafka_oauth_token_url": "http://x", "kafka_oauth_client_id": "c"},
            "KAFKA_OAUTH_CLIENT_SECRET",
        ),
        ({"kafka_ssl_cafile": "/nowhere"}, "KAFKA_SSL_CAFILE"),
        ({"kafka_ssl_cafile": __file__}, "KAFKA_SSL_CAFILE"),
        ({"kafka_ssl_certfile": "/nowhere"}, "KAFKA_SSL_CERTFILE"),
    ],
)
def test_what_is_missing_is_named(given: dict[str, Any], named: str) -> None:
    """By its variable, before anything is connected to."""
    with pytest.raises(UnusableSettings, match=named):
        kafka_arguments(Settings(kafka_security_protocol="SASL_SSL", **given))


def test_redis_is_given_the_authorities_only_with_tls() -> None:
    """A file that is not there is named."""
    assert redis_arguments(Settings(redis_url="redis://h/0", redis_ssl_cafile="/nowhere")) == {}
    with pytest.raises(UnusableSettings, match="REDIS_SSL_CAFILE"):
        redis_arguments(Settings(redis_url="rediss://h/0", redis_ssl_cafile="/nowhere"))


def test_settings_show_no_secret() -> None:
    """Neither themselves nor an error about them."""
    secrets = {
        "kafka_sasl_password": "s3cret", "kafka_oauth_client_secret": "s3cret", "redis_url": "rediss://u:s3cret@h/0"
    }  # fmt: skip
    assert "s3cret" not in repr(Settings(**secrets))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kafka_security_protocol") as refused:
        Settings(kafka_security_protocol="s3cret")  # type: ignore[arg-type]
    assert "s3cret" not in str(refused.value)
    assert "s3cret" not in repr(TokenClient("http://x", "c", "s3cret"))


class Authority:
    """A token endpoint."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answer: Any = {"access_token": "t", "expires_in": 3600}
        self.status = 200

    async def post(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["grant_type"] == "client_credentials"
        basic = base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode()
        self.asked.append((basic, str(form.get("scope"))))
        return web.json_response(self.answer, status=self.status, headers={"Location": "/elsewhere"})


@pytest.fixture
async def authority() -> AsyncIterator[tuple[Authority, str]]:
    endpoint, app = Authority(), web.Application()
    app.router.add_post("/token", endpoint.post)
    async with TestServer(app) as server:
        yield endpoint, str(server.make_url("/token"))


async def test_a_token_is_kept_until_it_expires(authority: tuple[Authority, str]) -> None:
    """One is asked for by the client's name and secret, and scope; one without a life is asked for again."""
    endpoint, url = authority
    tokens = TokenEndpoint(TokenClient(url, "c", "s:ecret", "kafka"))
    assert [await tokens.token(), await tokens.token()] == ["t", "t"]
    assert endpoint.asked == [("c:s%3Aecret", "kafka")]
    endpoint.answer = {"access_token": "t", "expires_in": 0}
    short = TokenEndpoint(TokenClient(url, "c", "s"))
    assert [await short.token(), await short.token()] == ["t", "t"]
    assert len(endpoint.asked) == 3


@pytest.mark.parametrize(
    ("status", "answer", "why"),
    [
        (401, {"error": "s3cret"}, "it answers 401"),
        (302, {}, "it answers 302"),
        (200, [], "no JSON object"),
        (200, {"token": "s3cret"}, "no access_token"),
    ],
)
async def test_an_endpoint_that_gives_no_token_is_named(
    authority: tuple[Authority, str], status: int, answer: Any, why: str
) -> None:
    """Without what it said: there may be a secret in it. Nothing is sent on to where it redirects."""
    endpoint, url = authority
    endpoint.status, endpoint.answer = status, answer
    with pytest.raises(TokenUnavailable, match=why) as refused:
        await TokenEndpoint(TokenClient(url, "c", "s3cret")).token()
    assert "s3cret" not in str(refused.value)
    assert url in str(refused.value)


async def test_an_endpoint_that_is_away_is_named() -> None:
    """As an outage, which is waited for."""
    with pytest.raises(TokenUnavailable, match=r"127\.0\.0\.1:1/token"):
        await TokenEndpoint(TokenClient("http://127.0.0.1:1/token", "c", "s")).token()


def test_files_of_secrets_lose_their_last_line_end(tmp_path: Path) -> None:
    """And nothing else."""
    file = tmp_path / "password"
    file.write_text(" p w \n")
    settings = Settings(
        kafka_security_protocol="SASL_PLAINTEXT", kafka_sasl_username="u", kafka_sasl_password_file=str(file)
    )
    assert kafka_arguments(settings)["sasl_plain_password"] == " p w "
