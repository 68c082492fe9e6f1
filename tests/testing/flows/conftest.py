"""The plugin, also where Perdure was installed before it had one."""

import pytest

import pytest_perdure


def pytest_configure(config: pytest.Config) -> None:
    hook = pytest_perdure.pytest_runtest_call
    if not any(getattr(plugin, "pytest_runtest_call", None) is hook for plugin in config.pluginmanager.get_plugins()):
        config.pluginmanager.register(pytest_perdure, "pytest_perdure")
