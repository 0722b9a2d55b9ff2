"""What the bus raises."""


class BusError(RuntimeError):
    """Base of the bus's errors."""


class NoRedisError(BusError):
    """No Redis server can be found, started or reached; the message says what to install or set."""


class RedisLoadsError(NoRedisError):
    """Redis reads its data back and answers nothing else; the message says how far it is."""


class LedgerError(BusError):
    """A transition that the ledger refuses; the message names the group or step and its state."""


class BusFullError(BusError):
    """Redis had no room for too long; the message says which kind."""
