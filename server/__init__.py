"""A gallery in service: a REST API that answers queries and explains them, and the page on top of it."""
