"""What asyncpg calls a row and a connection, one of a pool or one's own."""

from typing import TYPE_CHECKING

import asyncpg

Row = asyncpg.Record
if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = asyncpg.Connection[Row] | PoolConnectionProxy[Row]
else:
    Connection = asyncpg.Connection
