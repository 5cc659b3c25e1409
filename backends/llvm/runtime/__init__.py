"""Memory, threads, object code: what runs when a model is called."""
