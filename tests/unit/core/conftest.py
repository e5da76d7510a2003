"""One Hypothesis profile: so many examples that the whole folder stays far below a minute on one core."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "core",
    max_examples=150,
    deadline=None,  # cost is asserted by counting, never by wall time
    derandomize=True,  # the same examples on every machine; the simulation draws new ones
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("core")
