"""Frozen records: what an instance, an entry, a message and a write are. Pure data, no I/O, no clock, no asyncio."""
