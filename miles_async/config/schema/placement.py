"""Where the actors of a run get their places."""

from __future__ import annotations

from miles_async.config.schema.section import Section


class Placement(Section, frozen=True):
    # on several machines: which address of its machine an actor listens on and announces. The name of an interface, or the
    # network that it lies in ("10.0.0.0/8"), beyond which engines get no key; None: that from which it reaches the bus
    interface: str | None = None
    # on several machines: a directory that all of them see, for weights on their way; None: the run directory, which has to
    # be seen by all of them in any case
    shared_dir: str | None = None
