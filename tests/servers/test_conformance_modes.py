"""What two do at once, takeovers and transactions, at the other levels of isolation. The whole suite takes a while:

`python -c "from perdure.testing.conformance import run; run('postgresql://...?default_transaction_isolation=serializable')"`
runs it.
"""

from functools import partial

import pytest

from perdure.testing.conformance.plugin import MakeStore
from perdure.testing.conformance.plugin import kit as kit
from perdure.testing.conformance.test_engine import *  # noqa: F403
from perdure.testing.conformance.test_membership import *  # noqa: F403
from perdure.testing.conformance.test_races import *  # noqa: F403
from perdure.testing.conformance.test_transact import *  # noqa: F403
from tests.servers.test_conformance import fresh

MODES = {
    "serializable": "default_transaction_isolation=serializable",
    "repeatable read": "default_transaction_isolation=repeatable%20read&notify=off",
}


@pytest.fixture(params=MODES.values(), ids=MODES)
def make_store(request: pytest.FixtureRequest, emptied: str) -> MakeStore:
    return partial(fresh, f"{emptied}&{request.param}")
