"""Routes of the HTTP API: search, browse, write."""
