"""From a program to a plan."""
