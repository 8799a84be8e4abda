"""The adapters of every harness, set up for one project."""

from karta_server.config import Config
from karta_server.harness import registry
from karta_server.harness.contract import HarnessAdapter, HarnessSettings


def build_adapters(config: Config) -> dict[str, HarnessAdapter]:
    """Return an adapter for each harness by name, installed or not."""
    return {name: registry.load(name)(_settings(config, name)) for name in registry.ADAPTERS}


def _settings(config: Config, name: str) -> HarnessSettings:
    return HarnessSettings(
        project=config.project,
        state=config.state / "harness" / name,
        environment=config.harness_environment,
        options=config.harness_options.get(name, {}),
    )
