"""Compare fxquant with other int8 and fp32 runtimes."""
