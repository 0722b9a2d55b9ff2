"""What is known of a model by its files, before anything is loaded."""
