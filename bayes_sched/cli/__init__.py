"""One command and its subcommands."""
