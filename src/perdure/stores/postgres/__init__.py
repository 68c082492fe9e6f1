"""The PostgreSQL store: any number of replicas on any number of machines."""

from perdure.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
