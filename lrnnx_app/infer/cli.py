"""`lrnnx infer`: parses and delegates. Whatever needs torch is imported where it is used."""

import os
from pathlib import Path
from typing import Annotated

import typer

from lrnnx_app.console import options
from lrnnx_app.console.options import Device, Plugins, RunFolder
from lrnnx_app.errors import UserError


def infer(
    run: RunFolder,
    inputs: Annotated[
        list[Path] | None, typer.Argument(metavar="INPUT…", help="Files, folders, or - for PCM on stdin.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Result file or folder, or - for stdout.")
    ] = None,
    chunk_ms: Annotated[
        float | None,
        typer.Option(callback=options.positive, help="Chunk in ms; the model's hop by default."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=options.MOST_STEPS, help="Chunk in steps, instead.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Each file in one go.")] = False,
    running: Annotated[
        bool, typer.Option("--running", help="Classes after each chunk, with the time.")
    ] = False,
    realtime: Annotated[bool, typer.Option("--realtime", help="Feed audio at its own rate.")] = False,
    slots: Annotated[
        int | None, typer.Option(min=1, max=options.MOST_SLOTS, help="Files side by side in one session.")
    ] = None,
    rate: Annotated[
        int | None, typer.Option(min=1, help="Of PCM on stdin, in Hz; the model's by default.")
    ] = None,
    channels: Annotated[
        int, typer.Option(min=1, max=options.MOST_CHANNELS, help="Of PCM on stdin, mixed down to one.")
    ] = 1,
    form: Annotated[str, typer.Option("--format", help="Of PCM: s16le or f32le.")] = "s16le",
    device: Device = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the first minute.")] = None,
    to_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=options.MOST_THREADS, help="Of a CPU; 1 by default, or all if --offline."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text, or @FILE, that a model of text continues.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Several prompts, one a line, side by side.")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Most tokens to add to a prompt.")] = 400,
    temperature: Annotated[
        float, typer.Option(callback=options.not_negative, help="Of the draws; 0 for the likeliest token.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many likeliest tokens; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the fewest tokens of this probability.")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End a continuation before this text.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=options.MOST_SEED, help="Of the draws.")] = 0,
    save_state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the model's states after the texts.")
    ] = None,
    load_state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on from such states; prompts follow them.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Denoise audio or classify files chunk by chunk, as a live stream would be, and say what it cost; or
    continue a text."""
    from lrnnx_app.infer import prompts as texts
    from lrnnx_app.infer.job import Options
    from lrnnx_app.infer.sampling import Sampling
    from lrnnx_app.infer.start import infer as start
    from lrnnx_app.runs.run import Run

    given = texts.given(prompt, prompts)
    if given or load_state is not None:
        stops = tuple(os.fsencode(word) for word in stop or ())
        how = Sampling(length, temperature, top_k, top_p, stops, seed)
        return texts.continued(
            Run(run),
            given,
            how,
            device=device,
            count=threads,
            to_json=to_json,
            save=save_state,
            before=load_state,
        )
    if save_state is not None:
        raise UserError("--save-state: expected --prompt or --prompts with it")
    if not inputs:
        raise UserError("INPUT: expected a file, a folder or -; or --prompt for a model of text")
    chosen = Options(
        output,
        chunk_ms,
        steps,
        offline,
        running,
        realtime,
        slots,
        rate,
        channels,
        form,
        device,
        plot,
        to_json,
        threads,
    )
    raise typer.Exit(start(Run(run), inputs, chosen))
