"""One HTTP server and one client, of which the router, the sessions and the embedded engine are made. Knows no router."""
