"""The real SGLang server as a child process: ``driver.SglangServer``, and the shim that lets it run without a GPU."""
