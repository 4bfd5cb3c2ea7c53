"""Ready-made recipes, one YAML a file; `distill ls` lists them."""
