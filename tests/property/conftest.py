"""How many examples: PYTEST_EXAMPLES says so; few unless told otherwise.

The name's beginning is that of variables which tests may see. A failure prints how to repeat it.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "karta",
    max_examples=int(os.environ.get("PYTEST_EXAMPLES", "100")),
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("karta")
