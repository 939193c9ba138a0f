"""EdgePrune: fit a cloud-trained vision model to unlabelled images and make it small, verified and measured.

Importing the package imports nothing else: the device side must open in milliseconds, and without torch.
"""

__version__ = "0.1.0"
