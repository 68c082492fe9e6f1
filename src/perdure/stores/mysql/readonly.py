"""A MariaDB or MySQL store opened to be read alone, beside whoever writes to it."""

from __future__ import annotations

from dataclasses import replace

from perdure.errors import NotOurs
from perdure.stores.mysql import schema
from perdure.stores.mysql.pool import Pool
from perdure.stores.mysql.store import TIMEOUT, MysqlStore
from perdure.stores.versions import refused


class ReadOnlyMysqlStore(MysqlStore):
    """Tables that are there, with the reading half of the contract: no replica, no thread; the server refuses writes."""

    async def open(self) -> None:
        """The tables are there and readable.

        Raises:
            NotOurs: there are none, or another program's, or of another version.
        """
        if self._pool is not None:
            return
        self.address = replace(self.address, read_only=True)
        versions = await self._alone(schema.look)
        where = schema.where(self.address)
        if not versions.found:
            raise NotOurs(f"{where} are not there: check the URL, and prefix= in it")
        if versions.found < versions.known:
            raise refused(where, versions)
        self._pool = Pool(self.address, self._texts, TIMEOUT)
