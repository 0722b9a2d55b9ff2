"""Measurements, one file each: its ``run()`` measures and returns figures; ``miles-async bench NAME`` prints them."""
