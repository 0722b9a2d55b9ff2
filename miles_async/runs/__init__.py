"""The directory of a run: who holds it, its launches, what they leave."""
