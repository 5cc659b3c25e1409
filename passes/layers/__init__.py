"""Facts about single layers: their weights, and where they are used."""
