"""Files that are whole or not there, and room for them."""
