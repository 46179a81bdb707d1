"""The studies as subcommands: their options, and what is refused before anything is read."""

from bayes_sched.cli.command import Command

STUDIES: tuple[Command, ...] = ()
