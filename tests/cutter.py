"""A TCP proxy in front of PostgreSQL that cuts, refuses and holds connections when told to.

It reads what clients send as PostgreSQL's messages, so that it can cut one exactly at its COMMIT:
before the server got it, or after the server has done it and before the client hears of that.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal

_SOCKET = ".s.PGSQL.5432"
_NEGOTIATIONS = (80877103, 80877104)  # "may I encrypt?": the startup message follows
_PATIENCE_SECONDS = 10.0
_CHUNK_BYTES = 65_536
_TRANSACTION_ENDS = (b"COMMIT", b"ROLLBACK")


@dataclass
class _CommitTrap:
    when: Literal["before", "after"]
    of: bytes
    skip: int


class Cutter:
    """The proxy. Its methods may be called from any thread and have worked when they return."""

    def __init__(self, target: Path | tuple[str, int]) -> None:
        self.target = target
        self.port = 0
        """Where it listens on 127.0.0.1; the same after a `refuse`."""
        self.num_connected = 0
        """How many connections it has let through."""
        self.num_commits_cut = 0
        self.trap: _CommitTrap | None = None
        self.messages_left: int | None = None
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The database `postgres` behind it, for its superuser."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def cut(self) -> None:
        """Reset all connections."""
        self._call(self._cut)

    def refuse(self, refused: bool) -> None:
        """Refuse new connections, or take them again; those that are there stay."""
        self._await(self._close() if refused else self._listen())

    def hold(self, held: bool) -> None:
        """Let nothing pass, though connections are accepted; what was held back goes on after."""
        self._call(self._flow.clear if held else self._flow.set)

    def hold_idle(self) -> None:
        """Let nothing pass from a moment on at which nobody is connected.

        What is under way when a proxy stops is acknowledged by its host, so nobody notices.
        """
        self._await(self._hold_idle())

    def cut_after(self, num_messages: int) -> None:
        """Cut whoever sends a message after so many more of all clients; once."""
        self.messages_left = num_messages

    def cut_commit(self, when: Literal["before", "after"], of: bytes = b"", skip: int = 0) -> None:
        """Cut a connection at its COMMIT: before the server got it, or after it was done; once.

        Only at that of a transaction with a statement that has `of` in it, letting `skip` pass.
        """
        self.trap = _CommitTrap(when, of, skip)

    def _cut(self) -> None:
        for link in list(self._links):
            link.cut()

    async def _hold_idle(self) -> None:
        while self._links:
            await asyncio.sleep(0.001)
        self._flow.clear()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a client; no coroutine, which would close nothing if cancelled before it began."""
        self._clients.add(writer)
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            await self._flow.wait()
            link = _Link(self, (reader, writer), await self._dial())
            self.num_connected += 1
            self._links.add(link)
            try:
                await link.run(self._flow)
            finally:
                self._links.discard(link)
        _reset(writer)
        self._clients.discard(writer)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, Path):
            return await asyncio.open_unix_connection(self.target / _SOCKET)
        return await asyncio.open_connection(*self.target)

    def _call(self, function: Callable[[], None]) -> None:
        async def call() -> None:
            function()

        self._await(call())

    def _await(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE_SECONDS)

    async def _end(self) -> None:
        await self._close()
        # Again and again: who was being accepted gets a task of its own meanwhile.
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._clients:
            _reset(writer)
        await asyncio.sleep(0)  # for the transports to close

    def __enter__(self) -> "Cutter":
        self._loop, self._flow = asyncio.new_event_loop(), asyncio.Event()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.hold(False)
        self.refuse(False)
        return self

    def __exit__(self, *_: object) -> None:
        self._await(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Link:
    """One client's connection and its twin to the server."""

    def __init__(
        self,
        cutter: Cutter,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._cutter, self._client, self._server = cutter, client, server
        self._messages = _Messages()
        self._matches = False
        self._is_deaf = False
        """The client shall not hear the server's next word."""

    async def run(self, flow: asyncio.Event) -> None:
        """Carry bytes both ways until one side ends or the link is cut."""
        ways = [asyncio.ensure_future(self._up(flow)), asyncio.ensure_future(self._down(flow))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.cut()  # before anything is awaited: a second cancellation would end it there
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def cut(self) -> None:
        """Reset both connections."""
        for _, writer in (self._client, self._server):
            _reset(writer)

    async def _up(self, flow: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await self._client[0].read(_CHUNK_BYTES):
                await flow.wait()
                for message in self._messages.feed(data):
                    if not self._may_pass(message):
                        return
                    self._server[1].write(message)
                await self._server[1].drain()

    async def _down(self, flow: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await self._server[0].read(_CHUNK_BYTES):
                await flow.wait()
                if self._is_deaf:
                    self._cutter.num_commits_cut += 1
                    return
                self._client[1].write(data)
                await self._client[1].drain()

    def _may_pass(self, message: bytes) -> bool:
        left = self._cutter.messages_left
        if left is not None:
            self._cutter.messages_left = left - 1 if left else None
            if not left:
                return False
        trap = self._cutter.trap
        if message[:1] != b"Q":
            return True
        statement = message[5:].rstrip(b"\0; \n")
        if statement.upper() not in _TRANSACTION_ENDS:
            self._matches = self._matches or (trap is not None and trap.of in statement)
            return True
        matches, self._matches = self._matches, False
        if statement.upper() != b"COMMIT" or trap is None or not matches:
            return True
        return self._spring(trap)

    def _spring(self, trap: _CommitTrap) -> bool:
        """Tell whether this COMMIT, one that the trap is for, goes to the server."""
        if trap.skip:
            trap.skip -= 1
            return True
        self._cutter.trap = None
        self._is_deaf = trap.when == "after"
        self._cutter.num_commits_cut += trap.when == "before"
        return self._is_deaf


class _Messages:
    """Splits a client's bytes into messages; the first ones have no type, only a length."""

    def __init__(self) -> None:
        self._rest = b""
        self._has_begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the messages that are whole by now."""
        self._rest += data
        while len(self._rest) >= (start := int(self._has_begun)) + 4:
            (length,) = struct.unpack_from("!i", self._rest, start)
            if len(self._rest) < start + length:
                return
            message, self._rest = self._rest[: start + length], self._rest[start + length :]
            if not self._has_begun:
                self._has_begun = struct.unpack_from("!i", message, 4)[0] not in _NEGOTIATIONS
            yield message


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, by a RST where it is TCP."""
    connection = writer.get_extra_info("socket")
    if connection.fileno() >= 0 and connection.family == socket.AF_INET:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def cutter_before(url: str) -> Iterator[tuple[Cutter, str]]:
    """Yield a proxy before the embedded server of that URL, and the URL through it."""
    place, _, folder = url.partition("?host=")
    with Cutter(Path(folder)) as cutter:
        yield cutter, f"{place.replace('@', f'@127.0.0.1:{cutter.port}')}?sslmode=disable"
