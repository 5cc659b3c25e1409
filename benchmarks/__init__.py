"""Side-by-side timings of fxquant against other int8 (and fp32) runtimes; see `benchmarks.latency`."""
