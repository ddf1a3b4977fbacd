"""`lrnnx data …`: a group of two commands. Whatever needs torch is imported where it is used."""

from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from lrnnx_app.console.terminal import say
from lrnnx_app.errors import one_of


class OrShow(typer.core.TyperGroup):
    """A group of commands where a word that is none of them is for the command `show`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        name = self.commands["show"].params[0]
        return [*super().shell_complete(ctx, incomplete), *name.shell_complete(ctx, incomplete)]


app = typer.Typer(cls=OrShow, no_args_is_help=True, help="Show what data hold, or prepare some.")


@app.command()
def prepare(
    what: Annotated[str, typer.Argument(metavar="denoise", help="What the clips are for.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to fill, or to go on with.")],
    packages: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of .deb and .whl files, instead of apt-get's.")
    ] = None,
    speech: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="Speech of yours.")] = None,
    noise: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="Noise of yours.")] = None,
    music: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="Music of yours.")] = None,
    own: Annotated[bool, typer.Option("--own", help="Your folders only, no package.")] = False,
    judge: Annotated[bool, typer.Option("--judge", help="The set that judges, of other packages.")] = False,
) -> None:
    """Cut clips of speech, noise and music out of packages of Debian, and list them with their licences.

    What is done already is kept: the same command goes on where it was stopped.
    """
    from lrnnx_app.data.prepare import PLACES, denoise, sources

    one_of("denoise", what, ("denoise",))
    folders = {"speech": speech or (), "noise": noise or (), "music": music or ()}
    rows = denoise(out, {} if own else sources(judge), packages, folders, judge)
    for role in PLACES:
        seconds = [float(row["seconds"]) for row in rows if row["role"] == role]
        say(f"{role}: {len(seconds)} clips, {sum(seconds) / 60:.1f} min")
    say(f"{out}: index.csv, LICENCES.md")
