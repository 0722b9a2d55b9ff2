"""What becomes of a scored group: whether it is of use, which of its samples are trained on, with which rewards."""
