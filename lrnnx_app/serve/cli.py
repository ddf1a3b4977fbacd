"""`lrnnx serve`: parses and delegates. Whatever needs torch or aiohttp is imported where it is used."""

from pathlib import Path
from typing import Annotated

import typer

from lrnnx_app.console import options
from lrnnx_app.console.options import Device, Plugins


def serve(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN…", help="Run folders or shipped names; NAME=RUN gives a name."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for any.")] = 8765,
    streams: Annotated[
        int, typer.Option(min=1, max=options.MOST_SLOTS, help="Most live streams of each run.")
    ] = 64,
    slots: Annotated[
        int | None,
        typer.Option(min=1, max=options.MOST_SLOTS, help="Streams of a session; 8 by default, all on a GPU."),
    ] = None,
    message_bytes: Annotated[int, typer.Option(min=64, max=2**30, help="Most bytes of a message.")] = 2**16,
    messages: Annotated[
        float, typer.Option(callback=options.positive, help="Most messages of a stream, a second.")
    ] = 500.0,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the bearer token that clients must show.")
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Pages of this origin may connect; * for all."),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(metavar="FILE.pem", help="Certificate of TLS.")] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE.pem", help="Its key, if that is another file.")
    ] = None,
    page: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Static files to serve too.")] = None,
    drain: Annotated[
        float,
        typer.Option(callback=options.not_negative, help="Seconds that live streams go on after SIGTERM."),
    ] = 10.0,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Serve runs to many live streams over WebSocket: samples in, samples or classes out."""
    from lrnnx_app.serve import start

    chosen = start.Options(
        host,
        port,
        streams,
        slots,
        message_bytes,
        messages,
        token_file,
        origin or (),
        certificate,
        key,
        page,
        drain,
        device,
    )
    start.serve(runs, chosen)
