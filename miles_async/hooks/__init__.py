"""Functions of the user: from a name to one, calling it, and what is said when it fails."""
