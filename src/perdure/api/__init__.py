"""What a user's flow calls. It sees the engine only as the protocols of `scope.py`."""
