"""Print the reason of a refused start in one sentence instead of the framework's traceback."""

from __future__ import annotations

import sys

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.deployment import Refused
from app.watched_file import Unreadable


class PlainRefusal:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def plain(message: Message) -> None:
            refused = sys.exception()
            if message["type"] == "lifespan.startup.failed" and isinstance(refused, Refused | Unreadable):
                message = {**message, "message": str(refused)}
            await send(message)

        await self.app(scope, receive, plain if scope["type"] == "lifespan" else send)
