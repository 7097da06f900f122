"""What evidence.py is made of, one idea per file."""
