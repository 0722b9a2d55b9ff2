"""What an engine has to do: SGLang's HTTP contract, as far as we rely on it.

The same tests run against the real server (the oracle) and against ours: ``ENGINE=sglang pytest tests/contract`` and
``ENGINE=embedded pytest tests/contract`` (the default). Where the two may differ is in ``differences.py``, with the
reason; everything else is required of both.
"""
