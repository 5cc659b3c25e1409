"""The compiler: capture, workflows, report, search and the public functions."""
