"""Benchmarks: how fast an encoder or a whole map runs here, with the same answers.

``run_encoder_benchmark`` times ours and the official package in turn;
``run_throughputbench`` runs the published protocol with its columns.
"""

from bocage.bench.encoder import EncoderBenchmark, run_encoder_benchmark
from bocage.bench.machine import describe_machine
from bocage.bench.scene import run_scene_benchmark
from bocage.bench.table import format_rows, write_table
from bocage.bench.throughputbench import ThroughputBench, run_throughputbench
from bocage.bench.work import Shape, multiply_adds

__all__ = [
    "EncoderBenchmark",
    "Shape",
    "ThroughputBench",
    "describe_machine",
    "format_rows",
    "multiply_adds",
    "run_encoder_benchmark",
    "run_scene_benchmark",
    "run_throughputbench",
    "write_table",
]
