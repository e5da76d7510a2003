"""Values that nobody may read, in all that may repeat them."""

import html
import json
import re
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote, quote_plus, urlencode

import pytest
from yarl import URL

from anabranch.shared.contracts.hiding import Hiding
from anabranch.shared.contracts.urls import redacted, shown_url

VALUES = [
    "s3cret-t0ken", "correct horse battery staple", 'a"b\\c/d', "pa%ss+wo&rd=<1>'", "ünï¢ode-пароль-🔑",
    "tab\tand\nline", "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----", "4711", "ab?>ab?>ab?>",
    "https://hooks.example/services/T0/B0/xyzzy?sig=plugh", "postgres://bob:s3cret@db/x", '{"key": "s3cret value"}',
]  # fmt: skip


def forms_of(value: str) -> list[str]:
    """Return how others write a value."""
    written = [value, json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(json.dumps({"a": value}))]
    written += [repr(value), ascii(value), repr(ValueError(value)), html.escape(value), html.escape(value, quote=False)]
    written += [
        quote(value),
        quote(value, ""),
        quote_plus(value),
        urlencode({"a": value}),
        re.sub("%..", lambda e: e[0].lower(), quote(value, "")),
    ]
    written += [str(URL("http://h/").with_query(a=value)), str(URL("http://h/") / value.replace("/", "_"))]
    for around in ("", "u", "us", "use", "user:"):
        raw = f"{around}{value}{around}".encode()
        written += [b64encode(raw).decode(), urlsafe_b64encode(raw).decode(), raw.hex(), raw.hex().upper()]
    return written if "/" not in value else [form for form in written if "_" not in form]


@pytest.mark.parametrize("value", VALUES)
def test_no_form_of_a_value_is_left_in_an_output(value: str) -> None:
    """Neither in a text, nor in a name, nor in anything around; what is left is less than a few characters of it."""
    hiding = Hiding([value])
    for form in forms_of(value):
        hidden = hiding.output({"a": [f"<{form}>", {form: 1}]})
        shown = json.dumps(hidden, ensure_ascii=False)
        assert "***" in shown, form
        assert json.dumps(form, ensure_ascii=False)[1:-1] not in shown
        assert value not in shown


def test_what_is_none_of_the_values_stays() -> None:
    """Texts, numbers, null and truth of an output are what the handler returned."""
    value = {"a": [1, 1.5, None, True, "s3cret", "t0ken"], "b": {"c": "x"}}
    assert Hiding(["s3cret-t0ken", "4711"]).output(value) == value


def test_a_number_may_be_a_value_too() -> None:
    """A service may answer with the number that a secret is."""
    assert Hiding(["4711", "2.75"]).output([4711, 47110, 2.75]) == ["***", 47110, "***"]


def test_a_value_that_contains_another_is_hidden_whole() -> None:
    """The longer one goes first, whatever their order."""
    for values in (["abcd", "abcdefgh"], ["abcdefgh", "abcd"]):
        assert Hiding(values).whole("x abcdefgh abcd") == "x *** ***"


def test_a_short_value_is_hidden_where_it_is_all_of_a_text() -> None:
    """It is part of so many others that hiding it there would leave nothing, and would show what it is."""
    hiding = Hiding(["on", "x"])
    assert hiding.output({"a": ["on", "one", "x", "y"], "x": 1}) == {"a": ["***", "one", "***", "y"], "***": 1}


@pytest.mark.parametrize("value", [value for value in VALUES if len(value) >= 8])
@pytest.mark.parametrize("frame", ["{}", "POST {} failed", "x{}"])
def test_of_a_value_that_is_cut_off_no_more_than_a_few_characters_are_told(value: str, frame: str) -> None:
    """Messages have a size, and so have the parts they are made of: either end may be missing."""
    hiding = Hiding([value])
    for length in range(1, len(value)):
        for piece in (value[:length], value[-length:]):
            told = hiding.text(frame.replace("{}", piece))
            if length >= min(16, max(4, 2 * len(value) // 3)):
                assert piece not in told


@pytest.mark.parametrize("value", [value for value in VALUES if "://" in value])
def test_a_url_that_is_shown_without_its_credentials_is_not_shown(value: str) -> None:
    """A hook's path is a secret as much as its query."""
    hiding = Hiding([value])
    for shown in (redacted(f"GET {value}"), shown_url(value), str(URL(value)), str(URL(value).with_user(None))):
        told = hiding.text(shown)
        for piece in ("T0/B0", "xyzzy", "plugh", "s3cret"):
            assert piece not in told


def test_nothing_is_hidden_where_there_is_nothing_to_hide() -> None:
    """An empty value is in every text."""
    assert Hiding([""]).text("abc") == "abc"
    assert Hiding([]).told({"a": "b"}) == {"a": "b"}


def test_hiding_costs_no_more_than_the_length_of_a_text() -> None:
    """Texts and values made to be costly are gone through within the test's time."""
    for value in ("a" * 16_000, "ab" * 8_000, "\n".join(["line of it"] * 1_000), "%" * 16_000):
        hiding = Hiding([value])
        for text in ("a" * 1_000_000, "ab" * 500_000, "%" * 1_000_000):
            hiding.output(text)
            hiding.text(text[:50_000])
