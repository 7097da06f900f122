"""What train.py is made of, one idea per file."""
