"""`mmbench completion`: the script that completes command lines in a shell."""

from __future__ import annotations

import click

from mmbench import console

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes mmbench's command lines in SHELL.

    Commands, options, models, recipes, encoders, metrics, prepared datasets, feature sets and
    run folders are offered at a press of the tab key. Put the line for your shell into its
    start-up file:

    \b
      bash, in ~/.bashrc:    eval "$(mmbench completion bash)"
      zsh, in ~/.zshrc:      eval "$(mmbench completion zsh)"
      fish, once:            mmbench completion fish \\
                               > ~/.config/fish/completions/mmbench.fish
    """
    from click.shell_completion import get_completion_class

    from mmbench.cli.main import VARIABLE, cli

    script = get_completion_class(shell)
    assert script is not None
    console.text(script(cli, {}, "mmbench", VARIABLE).source())
