"""`make soak`: all of it runs under a fixed load, every process is killed once, and what was promised is checked."""
