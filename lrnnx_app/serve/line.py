"""One connection: a WebSocket that tells why it closes and never waits for a client who does not read."""

import asyncio
import logging
import socket
from contextlib import suppress

from aiohttp import WebSocketError, WSMessage, WSMsgType, web

HEARTBEAT = 20.0  # seconds without a message after which a client is asked whether it is there
CLOSING = 5.0  # seconds that a client has to answer a close
PROTOCOL = "lrnnx"
logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)  # a warning would show the token of a page
UNREAD = 1 << 16  # bytes that the system keeps of what a client does not read
REASONS = {
    1002: b"not the frames of a WebSocket",
    1007: b"a text is not UTF-8",
    1009: b"the message is too large",
}


class _Socket(web.WebSocketResponse):
    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        """As of aiohttp, which leaves out the reason where it closes by itself."""
        return await super().close(code=code, message=message or REASONS.get(code, b""), drain=drain)


class Connection:
    """Attributes:

    code: the code with which the connection was closed, by us or by the client; 0 while it is open.
    """

    def __init__(self, most_bytes: int) -> None:
        self.code = 0
        self._socket = _Socket(
            heartbeat=HEARTBEAT,
            timeout=CLOSING,
            protocols=(PROTOCOL,),
            compress=False,
            max_msg_size=most_bytes,
        )
        self._transport: asyncio.Transport | None = None

    @property
    def response(self) -> web.StreamResponse:
        return self._socket

    async def open(self, request: web.Request) -> None:
        """Answer the handshake.

        Raises:
            HTTPBadRequest: it is none.
        """
        await self._socket.prepare(request)
        self._transport = request.transport
        if self._transport is not None:  # a stream waits for its client by itself, and no tick for any
            self._transport.set_write_buffer_limits(high=1 << 30)
        raw = request.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD)

    @property
    def gone(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def waiting(self) -> int:
        """Bytes that the client's system has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    async def send(self, message: bytes | str) -> None:
        with suppress(ConnectionError):  # `receive` tells that the client is gone
            if isinstance(message, bytes):
                await self._socket.send_bytes(message)
            else:
                await self._socket.send_str(message)

    async def receive(self) -> WSMessage:
        """The next message. After a close, `code` is set."""
        message = await self._socket.receive()
        if message.type is WSMsgType.CLOSE:
            self.code = self.code or message.data or 1000  # a browser's close() has no code
        elif message.type in (WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
            refused = message.data.code if isinstance(message.data, WebSocketError) else None
            self.code = self.code or refused or 1006
        return message

    async def close(self, code: int, reason: str) -> None:
        """Close with a code and a reason; a client that does not answer is cut off."""
        self.code = self.code or code
        try:
            closing = self._socket.close(code=code, message=reason.encode()[:123], drain=False)
            await asyncio.wait_for(closing, CLOSING + 1)
        except (TimeoutError, ConnectionError, RuntimeError):
            pass
        finally:
            if self.waiting() and self._transport is not None:
                self._transport.abort()
