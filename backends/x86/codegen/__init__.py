"""The lowered graph, and the forms in which it runs."""
