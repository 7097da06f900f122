"""What ablate.py is made of, one idea per file."""
