"""Tokenizers: pictures, or features of them, as codes of a vocabulary, and back to pixels."""
