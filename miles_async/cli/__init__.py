"""The program ``miles-async``, and the one place that checks a configuration against every room."""
