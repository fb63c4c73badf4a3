"""Numbers with intervals: splits on the ground, metrics, bootstrap, paired tests."""
