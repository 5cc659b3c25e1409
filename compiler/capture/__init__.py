"""From a model to a graph with one spelling per op."""
