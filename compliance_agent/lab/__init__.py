"""A clinic in memory: a fake for every port, faults to inject, scenarios. Used by tests, demos and benchmarks only."""
