"""The report: one row per op, and totals."""
