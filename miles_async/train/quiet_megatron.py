"""Which warnings of Megatron's are nobody's to mend. To be said before it is imported, since it warns there."""

from __future__ import annotations

import warnings


def quiet_megatron() -> None:
    """Megatron warns, once for each of its files, that TransformerEngine and Apex are absent, which is a choice here; and of
    what it calls in torch, which is none of ours."""
    absent = "Transformer Engine and Apex are not", "Apex is not installed", "full scope is deprecated"
    for message in (*absent, "`load_state_dict` is deprecated", "Please use DTensor instead"):
        warnings.filterwarnings("ignore", message=message, category=Warning)
