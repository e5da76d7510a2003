"""The guards of the gateway and of what steps may reach, each taken out once (`make mutants-security`)."""

from typing import Final

from tests.mutants.mutant import Mutant

_GATEWAY: Final = "services/gateway"
_SECURITY: Final = "tests/security"

MUTANTS: Final = (
    # ---- Rate limits
    Mutant(
        "no client is refused",
        f"{_GATEWAY}/rate_limit.py",
        "        if not standing.allowed:\n            metrics",
        "        if False:\n            metrics",
        f"{_SECURITY}/test_rate_limit.py",
    ),
    Mutant(
        "without Redis nobody counts",
        f"{_GATEWAY}/rate_limit.py",
        "        except (RedisError, OSError, TimeoutError):",
        "        except ZeroDivisionError:",
        f"{_SECURITY}/test_rate_limit.py",
    ),
    Mutant(
        "any proxy is believed",
        f"{_GATEWAY}/addresses.py",
        "            if address is None or not self._vouches(address):",
        "            if address is None:",
        f"{_SECURITY}/test_rate_limit.py",
    ),
    Mutant(
        "each address of an IPv6 network is a client",
        f"{_GATEWAY}/addresses.py",
        "_IPV6_PREFIX: Final = 64",
        "_IPV6_PREFIX: Final = 128",
        f"{_SECURITY}/test_rate_limit.py",
    ),
    # ---- Headers and browsers
    Mutant(
        "a parser's error has no security headers",
        f"{_GATEWAY}/headers.py",
        "        headers.setdefault(name, value)",
        "        pass",
        f"{_SECURITY}/test_browsers.py",
    ),
    Mutant(
        "the server names its version",
        f"{_GATEWAY}/headers.py",
        '    response.headers["Server"] = SECURITY_HEADERS["Server"]',
        "    pass",
        f"{_SECURITY}/test_browsers.py",
    ),
    Mutant(
        "a page of another site may change something",
        f"{_GATEWAY}/origin.py",
        '    if is_foreign(given, request.headers.get("Sec-Fetch-Site"), request.host):',
        "    if False:",
        f"{_SECURITY}/test_browsers.py",
    ),
    Mutant(
        "Sec-Fetch-Site is not looked at",
        f"{_GATEWAY}/origin.py",
        '    if site is not None and site not in ("same-origin", "none"):',
        "    if False:",
        f"{_SECURITY}/test_browsers.py",
    ),
    Mutant(
        "every origin may read",
        f"{_GATEWAY}/origin.py",
        "(given in allowed or ANY in allowed)",
        "True",
        f"{_SECURITY}/test_browsers.py",
    ),
    # ---- The request log
    Mutant(
        "any request id is taken",
        f"{_GATEWAY}/request_log.py",
        "given is not None and _SANE.fullmatch(given)",
        "given is not None",
        f"{_SECURITY}/test_request_log.py",
    ),
    # ---- Limits and abuse
    Mutant(
        "a head may take for ever",
        "shared/runtime/listener.py",
        "            self._refuse_head(408, f\"The request's head was",
        "            (408, f\"The request's head was",
        f"{_SECURITY}/test_connections.py",
    ),
    Mutant(
        "a head may have any size",
        "shared/runtime/listener.py",
        "        if self._head_bytes > MAX_HEAD_BYTES:",
        "        if False:",
        f"{_SECURITY}/test_connections.py",
    ),
    Mutant(
        "connections without end",
        "shared/runtime/listener.py",
        "        if server.open >= listening.max_connections:",
        "        if False:",
        f"{_SECURITY}/test_connections.py",
    ),
    Mutant(
        "connections of one client without end",
        "shared/runtime/listener.py",
        "        return bool(client) and server.of_client[client] >= listening.max_connections_of_client",
        "        return False",
        f"{_SECURITY}/test_connections.py",
    ),
    Mutant(
        "requests in hand without end",
        f"{_GATEWAY}/crowd.py",
        "        if in_hand >= max_requests:",
        "        if False:",
        f"{_SECURITY}/test_connections.py",
    ),
    Mutant(
        "requests of one client in hand without end",
        f"{_GATEWAY}/crowd.py",
        "        if of_client[client] >= max_of_client:",
        "        if False:",
        f"{_SECURITY}/test_connections.py",
    ),
    Mutant(
        "a body of any length is asked for",
        f"{_GATEWAY}/body.py",
        "        if (request.content_length or 0) > MAX_BODY_BYTES:",
        "        if False:",
        f"{_SECURITY}/test_connections.py",
    ),
    Mutant(
        "a body unpacks to any size",
        f"{_GATEWAY}/body.py",
        "                if sent > MAX_BODY_BYTES or len(body) + len(chunk) > MAX_BODY_BYTES:",
        "                if False:",
        f"{_SECURITY}/test_bodies.py",
    ),
    Mutant(
        "gzip members without end",
        f"{_GATEWAY}/unpacking.py",
        "        if not self._is_gzip or self._members > _MAX_MEMBERS:",
        "        if not self._is_gzip:",
        f"{_SECURITY}/test_bodies.py",
    ),
    Mutant(
        "an unknown encoding is read as plain",
        f"{_GATEWAY}/body.py",
        '    raise ProblemError(\n        Kind.UNSUPPORTED_MEDIA_TYPE,\n        f"The Content-Encoding',
        '    return None\n    ProblemError(\n        Kind.UNSUPPORTED_MEDIA_TYPE,\n        f"The Content-Encoding',
        f"{_SECURITY}/test_bodies.py",
    ),
    # ---- What steps may reach
    Mutant(
        "private addresses may be connected to",
        "services/steps/reach.py",
        "    return address.is_global and not any(address in network for network in _CLOSED)",
        "    return True",
        f"{_SECURITY}/test_ssrf.py",
    ),
    Mutant(
        "mapped and translated addresses may be connected to",
        "services/steps/reach.py",
        "    if address.version == 6 and address not in _UNICAST:",
        "    if False:",
        f"{_SECURITY}/test_ssrf.py",
    ),
    Mutant(
        "a name may lead inside",
        "services/steps/reach.py",
        '            may_be = [each for each in found if self._reach.admits(each["host"], port)]',
        "            may_be = found",
        f"{_SECURITY}/test_ssrf.py",
    ),
    Mutant(
        "an address in a URL is not looked at",
        "services/steps/reach.py",
        "        if not isinstance(address[0], _Vetted) and not reach.admits(address[0], address[1]):",
        "        if False:",
        f"{_SECURITY}/test_ssrf.py",
    ),
    Mutant(
        "a name is looked up once for all",
        "services/steps/reach.py",
        "        use_dns_cache=False,",
        "        use_dns_cache=True,",
        f"{_SECURITY}/test_ssrf.py",
    ),
    Mutant(
        "a proxy of the environment is asked",
        "services/steps/fetch.py",
        "trust_env=False",
        "trust_env=True",
        f"{_SECURITY}/test_ssrf.py",
    ),
    Mutant(
        "credentials go to another origin",
        "services/steps/fetch.py",
        "        if self._has_left:\n",
        "        if False:\n",
        f"{_SECURITY}/test_ssrf.py",
    ),
    # ---- What people read
    Mutant(
        "an error names a URL's credentials",
        "shared/contracts/urls.py",
        '    return _RUN.sub(_bare, text) if "://" in text else text',
        "    return text",
        f"{_SECURITY}/test_redaction.py",
    ),
)
