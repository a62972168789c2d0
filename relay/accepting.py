"""Takes connections in at the ports, no more of them than there is room for.

Law: a flood of connections costs a bounded number of descriptors, no spinning and few lines. Where all places are
taken, whoever has kept the relay waiting longest makes room: a connection without a whole request on it, one whose
client does not read its answers, a TLS handshake that does not come to an end. Where all are busy, a few more are let
in to be told so, and the others wait at the port until there is room again.

The loops' own servers would not do: asyncio's takes a thousand connections at a time without asking and writes as many
lines a second once the descriptors are spent, uvloop's cuts connections off without counting them.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

import structlog

from relay.rules.crowding import Room

ACCEPTS_A_TURN = 64
"""Connections that are taken in before others have a turn on the loop."""
PAUSE = 0.1
"""Seconds until the port is looked at again after there was no room."""
SAFE = 0.5
"""Seconds for which nobody has to make room for one who has just come: a request is on its way as a rule."""
SHARE = 32
"""One of so many places is freed at a time, so that a flood does not cost a search for each of its connections."""
TELL_AGAIN = 10.0
"""Seconds between two lines about it."""
CLOSING = 2.0
"""Seconds that a client has to end TLS tidily."""
_GONE = (BlockingIOError, InterruptedError, ConnectionError)

log = structlog.get_logger()


class Guest(asyncio.Protocol):
    """A connection as its door sees it."""

    door: "Door | None" = None
    is_surplus = False
    """It is beyond what is served, and let in only to be told so."""

    def waiting_since(self) -> float | None:
        """Since when, by the loop's clock, the relay has waited for this client; None while it works for it."""
        raise NotImplementedError

    def cut_off(self) -> None:
        """End now, whatever is still to be sent."""
        raise NotImplementedError


class Crowd(Protocol):
    """What is known of a listener's connections."""

    @property
    def open(self) -> int:
        """Connections now, TLS handshakes included."""

    @property
    def refused(self) -> int:
        """How many were told that there are too many."""

    @property
    def displaced(self) -> int:
        """How many were closed to make room."""


class Door:
    """The way in through one listener's ports."""

    def __init__(
        self,
        name: str,
        make: Callable[[], Guest],
        room: Room,
        *,
        tls: ssl.SSLContext | None,
        patience: Callable[[], float],
    ) -> None:
        """`patience` tells how many seconds a TLS handshake may take."""
        self.room = room
        self.refused = 0
        self.displaced = 0
        self._name = name
        self._make = make
        self._tls = tls
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        self._resting: asyncio.TimerHandle | None = None
        self._guests: set[Guest] = set()
        self._arriving: dict[Guest, tuple[float, asyncio.Task[None]]] = {}
        self._told_at = float("-inf")
        self._untold = [0, 0]

    @property
    def open(self) -> int:
        """Connections now, TLS handshakes included."""
        return len(self._guests) + len(self._arriving)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each port."""
        return [one.getsockname()[:2] for one in self._sockets]

    def unlock(self, sockets: list[socket.socket]) -> None:
        """Take in whoever comes to these listening sockets."""
        self._sockets = sockets
        for one in sockets:
            one.settimeout(0)
        self._watch()

    def lock(self) -> None:
        """Close the ports; who is in stays."""
        self._rest()
        if self._resting is not None:
            self._resting.cancel()
        for one in self._sockets:
            one.close()
        self._sockets = []

    def clear(self) -> None:
        """Cut off whoever is still in a handshake."""
        for _, task in self._arriving.values():
            task.cancel()

    def entered(self, guest: Guest) -> None:
        """A connection is whole: one without TLS at once, another after its handshake."""
        self._arriving.pop(guest, None)
        self._guests.add(guest)

    def left(self, guest: Guest) -> None:
        """A connection is over."""
        self._guests.discard(guest)

    def admits(self) -> bool:
        """Whether a request that came on a connection too many is served all the same: there is room by now, or another
        makes room that only may bring a request. One that is not is counted."""
        if self.open <= self.room.served or self._make_room(safe=0.0):
            return True
        self.refused += 1
        self._untold[0] += 1
        self._tell("more connections than there is room for")
        return False

    def _watch(self) -> None:
        self._resting = None
        for one in self._sockets:
            self._loop.add_reader(one.fileno(), self._take_in, one)

    def _rest(self) -> None:
        """Leave whoever comes at the port for a moment."""
        for one in self._sockets:
            self._loop.remove_reader(one.fileno())

    def _rest_for_a_moment(self) -> None:
        self._rest()
        if self._resting is None:
            self._resting = self._loop.call_later(PAUSE, self._watch)

    def _take_in(self, port: socket.socket) -> None:
        for _ in range(ACCEPTS_A_TURN):
            if self.open >= self.room.served and not self._make_room() and self._is_full:
                self._rest_for_a_moment()
                return
            try:
                connection, _address = port.accept()
            except _GONE:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._make_room()
                self._tell(f"a connection cannot be taken in: {error.strerror}")
                self._rest_for_a_moment()
                return
            self._welcome(connection)

    @property
    def _is_full(self) -> bool:
        return self.open >= self.room.served + self.room.refused

    def _welcome(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        guest = self._make()
        guest.door = self
        guest.is_surplus = self.open >= self.room.served
        task = self._loop.create_task(self._lead_in(guest, connection))
        self._arriving[guest] = (self._loop.time(), task)

    async def _lead_in(self, guest: Guest, connection: socket.socket) -> None:
        within = (
            {} if self._tls is None else {"ssl_handshake_timeout": self._patience(), "ssl_shutdown_timeout": CLOSING}
        )
        try:
            await self._loop.connect_accepted_socket(lambda: guest, connection, ssl=self._tls, **within)
        except (OSError, asyncio.CancelledError):  # it went, spoke no TLS, took too long, or had to make room
            connection.close()
        finally:
            self._arriving.pop(guest, None)

    def _make_room(self, safe: float = SAFE) -> bool:
        """Close what has kept us waiting longest; False where nothing has for `safe` seconds."""
        latest = self._loop.time() - safe
        waiting = [(since, guest) for guest in self._guests if (since := guest.waiting_since()) is not None]
        waiting += [(since, guest) for guest, (since, _) in self._arriving.items()]
        longest = sorted((one for one in waiting if one[0] < latest), key=lambda one: one[0])
        if not longest:
            return False
        for _, guest in longest[: max(1, self.room.served // SHARE)]:
            self.displaced += 1
            self._untold[1] += 1
            if guest in self._arriving:
                self._arriving.pop(guest)[1].cancel()
            else:
                self.left(guest)  # its place is free from now on
                guest.cut_off()
        self._tell("more connections than there is room for")
        return True

    def _tell(self, reason: str) -> None:
        now = self._loop.time()
        if now - self._told_at < TELL_AGAIN:
            return
        refused, displaced = self._untold
        log.warning(
            "http.connections_refused",
            listener=self._name,
            open=self.open,
            most=self.room.served,
            refused=refused,
            displaced=displaced,
            reason=reason,
        )
        self._told_at, self._untold = now, [0, 0]
