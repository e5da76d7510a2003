from tests.unit.gateway.conftest import gateway

__all__ = ["gateway"]
