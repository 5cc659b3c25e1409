"""The search for the fastest int8/fp32 mix within an accuracy budget."""
