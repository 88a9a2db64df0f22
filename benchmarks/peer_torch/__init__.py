"""SmoothSA as a PyTorch program in the authors' manner, to compare with. Not part of the package.

Written from the method (docs/design.md) alone. Its keys are those of the authors' state dicts, so
that their weights load strictly. `tests/test_peer.py` compares it with the recorded numbers:
outputs, losses, gradients, six training steps.
"""
