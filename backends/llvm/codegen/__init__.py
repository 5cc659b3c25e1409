"""Writing LLVM IR."""
