"""The Python API: one function a command, with the same names and options as on the command line.

from edgeprune.commands.adapt import adapt; adapt(AdaptOptions(model="timm:resnet18", target=Path("photos")))
"""
