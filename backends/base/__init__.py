"""What all backends share: op rows, bindings, integer weights, the frozen program, the protocol."""
