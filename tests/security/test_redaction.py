"""Credentials of URLs: wherever a message names a URL, only its owner knows what they are."""

from typing import Any

import orjson
import pytest
import structlog
from pydantic import BaseModel

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.guard import Failure, Guard
from anabranch.services.steps.step_type import step_type
from anabranch.shared.contracts.errors import RetryableError, TerminalError
from anabranch.shared.contracts.source import parse_source
from anabranch.shared.contracts.urls import redacted, shown_url, without_credentials
from anabranch.shared.contracts.validation import InvalidPipeline, validate_pipeline
from anabranch.shared.runtime.log import _bounded

URLS = [
    "http://bob:s3cret@h/", "http://s3cret@h/p", "https://bob:s3cret@h:8080/p?a=b#c", "HTTP://BOB:s3cret@H",
    "http://bob:s3/cret@h/", "http://bob:s3#cret@h/", "http://bob:s3?cret@h/", "http://bob:x@s3cret@h/",
    "http://bob:%73s3cret@h/", "http://:s3cret@[::1]:80/", "redis://:s3cret@h:6379/0", "postgresql+psycopg://u:s3cret@h/d",
    "amqps://u:s3cret@h", "ftp://u:s3cret@h/", "http://h/?token=s3cret", "http://h?s3cret", "http://h/p?a=1&api_key=s3cret",
    "http://h/p?X-Amz-Signature=s3cret&b=1", "http://h/#access_token=s3cret", "http://h/;x?sig=s3cret",
    "http://h:80/?code=s3cret", "wss://h/?ticket=s3cret", "http://user:p:s3cret@h/",
]  # fmt: skip
FRAMES = ["{}", "GET {} failed", "'{}'", '"{}"', "<{}>", "({})", "a {} b {} c", "[{}] is no URL\n{}", "x={}"]


class Nothing(BaseModel):
    """No input, no output."""


def context() -> StepContext:
    return StepContext(
        run_id="r", step="s", attempt=1, tenant="t", deadline=0, clock=lambda: 0, log=structlog.get_logger()
    )


def assert_hidden(text: object, url: str) -> None:
    """Assert that neither the credential nor a piece of it is there."""
    for piece in ("s3cret", "s3/cret", "s3#cret", "s3?cret"):
        assert piece not in str(text), url


@pytest.mark.parametrize("url", URLS)
def test_a_text_names_no_credentials_of_its_urls(url: str) -> None:
    """Whatever stands around a URL, and however a password is written."""
    for frame in FRAMES:
        assert_hidden(redacted(frame.replace("{}", url)), url)
    assert_hidden(shown_url(url), url)


@pytest.mark.parametrize(
    "text", ["http://h/p", "https://medium.com/@user", "http://h:80/a@b", "a@b.c", "see http://h/a, then http://b.c:1/d/"]
)  # fmt: skip
def test_a_text_without_credentials_stays_as_it_is(text: str) -> None:
    """A redaction that hides too much helps nobody."""
    assert redacted(text) == text


def test_redaction_costs_no_more_than_the_length_of_a_text() -> None:
    """Texts made to be costly are gone through within the test's time."""
    for piece in ("a://", "a://b:x", 'a://b:x"', "a://b:x?", "a://@", "://", "a" * 40, "a://b:1", "@", "a://b:x/"):
        redacted(piece * (200_000 // len(piece)))


@pytest.mark.parametrize("error", [ValueError, TerminalError, RetryableError, KeyError, OSError])
@pytest.mark.parametrize("url", URLS)
async def test_the_failure_of_any_step_type_names_no_credentials(url: str, error: type[Exception]) -> None:
    """Message, details and traceback of whatever a handler raises, also where a text is cut."""

    @step_type("leaky")
    async def leaky(given: Nothing, context: StepContext) -> Nothing:
        details: dict[str, Any] = {}
        if error in (TerminalError, RetryableError):
            details = {"details": {url: [url, {"deep": f"at {url}"}]}}
        raise error(f"cannot reach {url}", **details) from ValueError(url)

    outcome = await Guard(leaky).in_loop({}, context())
    assert isinstance(outcome, Failure)
    assert_hidden(outcome, url)


async def test_a_url_that_is_cut_off_names_no_credentials() -> None:
    """A message that ends within a URL was redacted before."""
    for length in range(4070, 4100):

        @step_type("leaky")
        async def leaky(given: Nothing, context: StepContext) -> Nothing:
            raise TerminalError("x" * length + " http://bob:s3cret@h/")  # noqa: B023

        outcome = await Guard(leaky).in_loop({}, context())
        assert isinstance(outcome, Failure)
        assert "bob" not in outcome.message


@pytest.mark.parametrize("url", URLS)
def test_a_log_line_names_no_credentials(url: str) -> None:
    """Neither a text, nor a value within a value, nor a traceback."""
    event = {
        "event": f"asked {url}",
        "url": url,
        "many": [url, {"a": url}],
        "error": ValueError(url),
        "long": url * 2000,
    }
    line = _bounded(None, "", event)
    assert_hidden(orjson.dumps(line, default=repr).decode(), url)


def test_a_refused_submission_names_no_credentials() -> None:
    """The gateway's problems quote what does not fit, without what is nobody's business."""
    schema = {"type": "object", "properties": {"url": {"type": "string", "pattern": "^https?://", "maxLength": 5}}}
    for url in URLS:
        text = orjson.dumps({"name": "a", "steps": {"a": {"uses": "x", "with": {"url": f"x{url}"}}}})
        with pytest.raises(InvalidPipeline) as refusal:
            validate_pipeline(parse_source(text), step_types={"x": schema})
        assert_hidden(refusal.value.errors, url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [("http://bob:x@h/p?page=2&token=x", "http://h/p?page=2&token=***"), ("http://h/?a=1", "http://h/?a=1"),
     ("http://h/?X-Amz-Signature=x&sig=y&key=z&n=1", "http://h/?X-Amz-Signature=***&sig=***&key=***&n=1")],
)  # fmt: skip
def test_the_url_of_an_output_still_leads_somewhere(url: str, shown: str) -> None:
    """Only what is a credential by its name is hidden there."""
    assert without_credentials(url) == shown
