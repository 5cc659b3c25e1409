"""Running graphs on batches: shapes, two graphs side by side, timing."""
