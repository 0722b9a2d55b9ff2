"""What the benchmarks are made of; each ``bench_NAME.py`` beside it is one of them."""
