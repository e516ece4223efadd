"""From a config to a server that answers, until somebody stops it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import uvicorn
from fastapi import FastAPI

from limner.errors import BadInput
from limner.serve.app import create_app
from limner.serve.config import Config
from limner.serve.guard import Patient
from limner.serve.seams import parts_of
from limner.serve.tokens import check_start

WAITING = 2048  # connections that may wait until they are answered
LEAVE = 5  # seconds that answers have to end when the server is stopped
IDLE = 65  # seconds that a connection is kept without a request; proxies keep theirs for 60


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on, on a port that the system picks where `port` is 0."""
    if not 0 <= port < 2**16:
        raise BadInput(f"--port should be from 0, for a free one, to 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise BadInput(f"{host!r} is no address of this machine") from error
    ours = socket.socket(family, kind, protocol)
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.bind(address)
        ours.listen(WAITING)
    except OSError as error:
        ours.close()
        if error.errno == errno.EADDRINUSE:
            raise BadInput(f"port {port} of {host} is taken; --port {port + 1}, or --port 0 for a free one") from error
        raise BadInput(f"{host} port {port} cannot be listened on: {error.strerror}") from error
    return ours


def address(config: Config) -> str:
    """What a person opens; an address that stands for all is shown as this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
    return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{config.port}/"


class Server(uvicorn.Server):
    """uvicorn's, which ends the streams first: they would keep it waiting."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        parts_of(self.config.app).news.close_soon()  # type: ignore[arg-type]
        super().handle_exit(sig, frame)


def run(config: Config, begun: Callable[[Config, FastAPI], None] = lambda *_: None, verbose: bool = False) -> None:
    """Serve until SIGINT or SIGTERM. `begun` is called when connections are taken, before the first answer."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    with listen(config.host, config.port) as ours:
        config = replace(config, port=ours.getsockname()[1])
        app = create_app(config)
        check_start(config, parts_of(app).store)
        begun(config, app)
        server = Server(
            uvicorn.Config(
                app,
                http=Patient,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=verbose,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=IDLE,
                timeout_graceful_shutdown=LEAVE,
            )
        )
        with contextlib.suppress(KeyboardInterrupt):  # raised anew when all is put away
            asyncio.run(server.serve(sockets=[ours]))
