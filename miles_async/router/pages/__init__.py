"""The router's own pages."""
