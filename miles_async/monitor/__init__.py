"""What a run says about itself: its record on disk, its live view, its picture and its summary."""

from miles_async.monitor.monitor import Monitor

__all__ = ["Monitor"]
