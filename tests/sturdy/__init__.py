"""Nothing is broken by interrupts, exceptions, threads, forks, load or repetition."""
