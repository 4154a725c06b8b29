"""Settings of the whole suite: hypothesis profiles, threads."""

import os

import torch
from hypothesis import HealthCheck, Phase, settings

# dev: seconds, while writing; ci: what every commit must pass, the same examples each time; thorough: before a release.
settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
# second: a second run of the same tests, on another torch, with a tenth of the examples.
settings.register_profile(
    "second", max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# mutants: for make mutants, hundreds of runs; the failing example need not be simple.
settings.register_profile(
    "mutants", max_examples=15, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# A test must not download a model.
os.environ["HF_HUB_OFFLINE"] = "1"

# Tests run in parallel processes; several threads in each would only wait for each other.
torch.set_num_threads(1)

# A script, which imports the frameworks of the examples.
collect_ignore = ["fork_examples.py"]
