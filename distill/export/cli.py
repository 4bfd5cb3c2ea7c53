"""The command line of `distill export`."""

from __future__ import annotations

import argparse
from typing import Any

HELP = """\
timm          the image tower, for timm.create_model
hf            both towers, for transformers' TIPSv2 (extra hf)
onnx          both towers as graphs, any batch and image size (extra onnx)
tips          the official npz files
safetensors   both towers and tokenizer in one file, for distill.load

example       distill export run:runs/scenes_tiny --to timm --out scenes-timm
"""


def register(subparsers: Any) -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="write a model for another ecosystem",
        description="Write a model for another ecosystem. It is loaded again and compared first.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a model's source: run:PATH (or a plain path), tips:, file:, ..."
    )
    parser.add_argument("--to", required=True, metavar="FORMAT", help="timm, hf, onnx, tips or safetensors")
    parser.add_argument("--out", metavar="DIR", help="the new folder (default: the model's name and the format)")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit status."""
    from distill.export.run import export

    done = export(args.model, args.to, args.out)
    print(f"written: {done.folder}, equal to the original within {done.difference:.2g}")
    return 0
