"""`lrnnx data …`: groups of two commands. Whatever needs torch is imported where it is used."""

from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from lrnnx_app.console.terminal import say


class OrOther(typer.core.TyperGroup):
    """A group of commands where a word that is none of them is for the command `other`."""

    other = "show"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = [self.other, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        name = self.commands[self.other].params[0]
        return [*super().shell_complete(ctx, incomplete), *name.shell_complete(ctx, incomplete)]


class OrRecipe(OrOther):
    other = "recipe"


app = typer.Typer(cls=OrOther, no_args_is_help=True, help="Show what data hold, or prepare some.")
preparing = typer.Typer(
    cls=OrRecipe, no_args_is_help=True, help="Prepare data ahead: those of a RECIPE, or clips to denoise."
)
app.add_typer(preparing, name="prepare")


@preparing.command()
def denoise(
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
    from lrnnx_app.data import prepare

    folders = {"speech": speech or (), "noise": noise or (), "music": music or ()}
    rows = prepare.denoise(out, {} if own else prepare.sources(judge), packages, folders, judge)
    for role in prepare.PLACES:
        seconds = [float(row["seconds"]) for row in rows if row["role"] == role]
        say(f"{role}: {len(seconds)} clips, {sum(seconds) / 60:.1f} min")
    say(f"{out}: index.csv, LICENCES.md")
