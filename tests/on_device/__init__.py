"""Whether a GPU computes what a CPU does, and how long a training step takes there.

`python -m tests.on_device` prints tables in Markdown; `--device cpu` tries it without a GPU.
"""
