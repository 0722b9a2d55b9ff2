"""What a run is told: the typed schema, the rules across its keys, and its TOML. Knows no other room."""
