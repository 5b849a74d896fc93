"""Results of many runs as tables: means, spreads, comparisons with the paper."""
