"""The evaluation harness: benchmarks -> generations -> verdicts -> metrics. It knows nothing of training."""
