"""The public face and the machinery behind it."""
