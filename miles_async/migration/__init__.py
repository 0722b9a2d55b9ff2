"""From another program's launch scripts to a configuration of ours."""
