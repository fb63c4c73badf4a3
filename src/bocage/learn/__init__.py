"""From labels to maps: labels, probes, prediction, suites of tasks."""
