"""`bsnn reproduce`: all runs, measurements, tables and figures of the paper by one command."""
