"""The real SGLang server: as a child process (``driver.SglangServer``) or somebody else's, checked (``check.py``) and watched
(``health.py``, ``observer.py``); which flags it may have (``flags.py``), and the shim that lets it run without a GPU."""
