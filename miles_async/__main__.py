"""``python -m miles_async``: the command line."""

from miles_async.cli import main

main()
