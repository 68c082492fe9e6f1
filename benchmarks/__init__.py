"""How fast Perdure is, beside the bare database and DBOS, in one run: `python -m benchmarks`."""
