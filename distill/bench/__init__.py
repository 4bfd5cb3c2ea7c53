"""Benchmarks: what is fast here, against a plain reference, both measured in one run (`distill bench`)."""
