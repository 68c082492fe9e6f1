"""The store contract as tests: whoever writes a store runs them, and so do we for ours.

`run` plays all of them on one store; `suite` holds them for a test module of one's own; `plugin` is what pytest needs to
run them where they are. They know the contract, the records and the public engine; no store but the memory store, which
is the reference.
"""

from __future__ import annotations

import os
import shlex

import pytest


def run(store: str, /, *pytest_args: str) -> int:
    """The suite has run on this store, in this process, and has printed what pytest prints; gives pytest's exit code.

    Nothing but pytest and the store takes part: configuration, conftests and plugins of the place are left out.

    Args:
        store: a URL, in which `{tmp}` is a folder of the test's own (`sqlite:///{tmp}/x.db`), or `module:factory`: see
            `plugin.MakeStore`. Modules of the current directory can be imported.
        pytest_args: more arguments of pytest's, `-x` or `-k claim`.
    """
    here = os.getcwd()
    alone = ["--disable-plugin-autoload", "--noconftest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", here]
    named = ["-p", f"{__name__}.plugin", "-o", f"pythonpath={shlex.quote(here)}", "--perdure-store", store]
    return int(pytest.main([*alone, *named, "--import-mode=importlib", "--pyargs", __name__, *pytest_args]))
