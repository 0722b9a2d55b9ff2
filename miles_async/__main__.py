"""``python -m miles_async``: the command line."""

from miles_async.cli.app import main

main()
