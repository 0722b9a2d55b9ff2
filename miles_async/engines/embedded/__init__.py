"""The embedded engine: a small batched KV-cache generator that speaks SGLang's native HTTP API.

For laptops and CI, on a CPU or one GPU. Dense Qwen3, Qwen2 and Llama checkpoints; one process, one model copy, no
prefix cache. ``server.py`` is the way in.
"""
