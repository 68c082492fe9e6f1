"""The MariaDB and MySQL store: any number of replicas on any number of machines."""

from perdure.stores.mysql.store import MysqlStore

__all__ = ["MysqlStore"]
