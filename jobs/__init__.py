"""Entry points that `ray job submit` runs: parse, build, call, report."""
