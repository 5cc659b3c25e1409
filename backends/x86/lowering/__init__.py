"""From a frozen program to a lowered graph."""
