"""The stores: one contract, one file or package per database, each owning all its SQL."""
