"""From a float graph to a frozen one."""
