"""Settings: which name sets what."""

import pytest
from pydantic import ValidationError

from anabranch.shared.runtime.settings import Settings, unknown_names


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "ANABRANCH_INSTANCE", "ANABRANCH_RUN_PARTITIONS"):
        monkeypatch.delenv(name, raising=False)


class GatewaySettings(Settings):
    http_port: int = 8080
    max_lag: int = 100


def test_each_field_is_set_by_its_prefixed_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANABRANCH_RUN_PARTITIONS", "3")
    monkeypatch.setenv("ANABRANCH_MAX_LAG", "7")
    settings = GatewaySettings()
    assert (settings.run_partitions, settings.topics.runs, settings.max_lag, settings.http_port) == (3, 3, 7, 8080)


def test_names_of_the_trade_win_over_prefixed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANABRANCH_REDIS_URL", "redis://second")
    assert Settings().redis_url == "redis://second"
    monkeypatch.setenv("REDIS_URL", "redis://first")
    assert Settings().redis_url == "redis://first"


def test_values_given_in_code_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANABRANCH_RUN_PARTITIONS", "3")
    assert Settings(run_partitions=5).run_partitions == 5


def test_instance_names_the_host_and_the_process() -> None:
    assert Settings().instance.rpartition("-")[2].isdigit()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().run_partitions = 4


def test_name_that_sets_nothing_is_reported() -> None:
    environment = {"ANABRANCH_RUN_PARTITION": "3", "ANABRANCH_MAX_LAG": "1", "PATH": "", "ANABRANCH_HOME": "."}
    assert unknown_names(GatewaySettings, environment) == ["ANABRANCH_RUN_PARTITION"]
