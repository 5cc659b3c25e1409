"""How each op becomes steps: one function for each op, by its name."""
