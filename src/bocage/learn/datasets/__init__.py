"""Labelled sets of images that a suite can name: one small file per kind."""
