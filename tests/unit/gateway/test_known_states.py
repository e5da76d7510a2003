"""A client that has a run already is told so, and nothing else: `ETag` and `If-None-Match`."""

from typing import Any

import orjson
import pytest

from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.runtime.snapshots import fields_of
from tests.unit.history.fakes import run_ended, run_started, step_succeeded

from .fakes import Bench


def project(gateway: Bench, run_id: str, *events: Any) -> None:
    """Have the events in Redis."""
    fields = gateway.redis.hashes.setdefault(gateway.keys.run(run_id), {})
    for event in events:
        fields |= fields_of(event) | {b"seq": str(event.seq).encode()}


async def ask(gateway: Bench, run_id: str, *, query: str = "", **headers: str) -> Any:
    """Return the answer to a read."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.client.get(f"/v1/runs/{run_id}{query}", headers=sent)


async def test_a_run_that_is_as_the_client_has_it_is_304(gateway: Bench) -> None:
    """Without a body, and without being read; a weak tag, one among others and `*` say so as well."""
    run_id = new_run_id()
    project(gateway, run_id, run_started(run_id))
    tag = (await ask(gateway, run_id)).headers["ETag"]
    for given in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        answer = await ask(gateway, run_id, If_None_Match=given)
        assert (answer.status, await answer.read(), answer.headers["ETag"]) == (304, b"", tag)
    assert (await gateway.client.head(f"/v1/runs/{run_id}", headers={"If-None-Match": tag})).status == 304


async def test_every_state_of_a_run_has_a_tag_of_its_own(gateway: Bench) -> None:
    """Accepted, begun, going on and ended; so has a second run with the id of one that ended long ago."""
    run_id = (await (await gateway.submit()).json())["id"]
    tags = [(await ask(gateway, run_id)).headers["ETag"]]
    for event in (run_started(run_id), step_succeeded(2, "a", run_id), run_ended(3, run_id)):
        project(gateway, run_id, event)
        answer = await ask(gateway, run_id, If_None_Match=tags[-1])
        assert answer.status == 200
        tags.append(answer.headers["ETag"])
    later = run_started(run_id).model_copy(update={"at": "2027-01-31T12:00:00.000000Z"})
    project(gateway, run_id, later, run_ended(3, run_id))
    tags.append((await ask(gateway, run_id)).headers["ETag"])
    assert len(set(tags)) == 5


async def test_a_packed_run_has_a_weak_tag_that_is_known_again(gateway: Bench) -> None:
    """Its bytes are others, and what they say is the same."""
    run_id = new_run_id()
    project(gateway, run_id, run_started(run_id, steps={f"s{n}": "http" for n in range(50)}))
    packed = await ask(gateway, run_id, Accept_Encoding="gzip")
    plain = await ask(gateway, run_id, Accept_Encoding="identity")
    assert packed.headers["ETag"] == f"W/{plain.headers['ETag']}"
    assert (await ask(gateway, run_id, If_None_Match=packed.headers["ETag"])).status == 304


async def test_who_waits_is_told_when_the_run_is_another_than_he_has(gateway: Bench) -> None:
    """And that it is the same when the time is up."""
    run_id = new_run_id()
    project(gateway, run_id, run_started(run_id))
    tag = (await ask(gateway, run_id)).headers["ETag"]
    assert (await ask(gateway, run_id, query="?wait=10ms", If_None_Match=tag)).status == 304
    project(gateway, run_id, run_ended(2, run_id))
    answer = await ask(gateway, run_id, query="?wait=60s", If_None_Match=tag)
    assert (answer.status, orjson.loads(await answer.read())["status"]) == (200, "succeeded")


@pytest.mark.parametrize("given", ["", "x", '"', '"*"', '"a" "b"', "W/", ",", '"x"'])
async def test_what_is_no_tag_of_the_run_is_passed_over(given: str, gateway: Bench) -> None:
    """The run is answered as if nothing had been asked; what is not there is 404 all the same."""
    run_id = new_run_id()
    project(gateway, run_id, run_started(run_id))
    assert (await ask(gateway, run_id, If_None_Match=given)).status == 200
    assert (await ask(gateway, new_run_id(), If_None_Match="*")).status == 404
