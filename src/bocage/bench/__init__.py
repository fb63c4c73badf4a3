"""Benchmarks: how fast an encoder or a whole map runs here, with the same answers.

run_encoder_benchmark(EncoderBenchmark(...)) -> rows
"""

from bocage.bench.encoder import EncoderBenchmark, run_encoder_benchmark
from bocage.bench.machine import describe_machine
from bocage.bench.table import format_rows, write_table
from bocage.bench.work import Shape, multiply_adds

__all__ = [
    "EncoderBenchmark",
    "Shape",
    "describe_machine",
    "format_rows",
    "multiply_adds",
    "run_encoder_benchmark",
    "write_table",
]
